from __future__ import annotations

import numpy as np
import pytest
import torch

from digit_images import HOW, train_and_validation
from edvit.builder import backbone
from edvit.builder.augment import GLYPHS, Views
from edvit.builder.backbone import FeatureExtractor
from edvit.builder.teacher import create_outputs, open_outputs, write_view

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def extractor():
    torch.manual_seed(0)
    return FeatureExtractor(backbone.create("vit_digits_patch4_8", channels=1, classes=10).eval(), HOW.mean, HOW.std)


def test_each_view_is_the_base_models_whatever_the_order(tmp_path, extractor):
    train, _ = train_and_validation(tmp_path / "digits", 400)  # more than one batch, and not a whole number of them
    views, seen = Views(train, GLYPHS, 3), []
    create_outputs(tmp_path, views=3, images=len(train), classes=10, dim=96)
    for view in (2, 0, 1):
        write_view(extractor, views, view, tmp_path, lambda *state: seen.append(state))
    outputs = open_outputs(tmp_path)
    assert outputs.views == 3
    assert outputs.logits.shape == (3, len(train), 10)
    assert outputs.features.shape == (3, len(train), 96)
    assert outputs.logits.dtype == outputs.features.dtype == np.float32
    assert isinstance(outputs.features, np.memmap)
    assert outputs.features.mode == "r"
    index = np.arange(len(train))
    with torch.inference_mode():
        for view in range(3):
            feature = extractor(views.batch(view, index))
            assert np.allclose(outputs.features[view], feature, atol=1e-4)
            assert np.allclose(outputs.logits[view], extractor.model.head(feature), atol=1e-4)
    assert not np.allclose(outputs.logits[0], outputs.logits[1])
    assert seen.count((len(train), len(train))) == 3
