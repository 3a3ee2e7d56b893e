from __future__ import annotations

import numpy as np
import pytest
import torch

from digit_images import HOW, train_and_validation
from edvit.builder.train.augment import GLYPHS, Views
from edvit.builder.train.device import TorchDevice
from edvit.builder.train.teacher import open_views, stream_blocks, stream_bytes, streams_of, write_view
from edvit.builder.vit import backbone
from edvit.builder.vit.backbone import FeatureExtractor

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def extractor():
    torch.manual_seed(0)
    return FeatureExtractor(backbone.create("vit_digits_patch4_8", channels=1, classes=10).eval(), HOW.mean, HOW.std)


def test_each_view_is_the_base_models(tmp_path, extractor):
    train, _ = train_and_validation(tmp_path / "digits", 400)  # more than one batch, and not a whole number of them
    views, seen, folders = Views(train, GLYPHS, 3), [], []
    for view, blocks in ((2, ()), (0, (1, 2))):
        folders.append(tmp_path / str(view))
        folders[-1].mkdir()
        write_view(extractor, views, view, folders[-1], blocks=blocks, progress=lambda *state: seen.append(state))
    outputs = open_views(folders)
    index = np.arange(len(train))
    for view, output in zip((2, 0), outputs, strict=True):
        assert output.logits.dtype == output.features.dtype == np.float32
        assert isinstance(output.features, np.memmap)
        assert output.features.mode == "r"
        with torch.inference_mode():
            feature = extractor(views.batch(view, index))
            assert np.allclose(output.features, feature, atol=1e-4)
            assert np.allclose(output.logits, extractor.model.head(feature), atol=1e-4)
    assert not np.allclose(outputs[0].logits, outputs[1].logits)
    assert seen.count((len(train), len(train))) == 2
    assert outputs[0].streams is None
    streams = outputs[1].streams
    assert (streams.shape, streams.dtype) == ((len(train), 2, 5, 96), np.float16)
    with torch.inference_mode():
        model, pixels = extractor.model, (views.batch(0, index) / 255 - extractor.mean) / extractor.std
        stream = backbone.embed(model, pixels)
        for number, block in enumerate(model.blocks[:3]):
            stream = block(stream)
            if number:
                assert np.allclose(streams[:, number - 1], stream, atol=2e-2, rtol=2e-3)


def test_in_mixed_precision_the_teacher_sees_what_sub_models_see(tmp_path, extractor, monkeypatch):
    train, _ = train_and_validation(tmp_path / "digits", 40)
    views, seen, follow = Views(train, GLYPHS, 3, mix=0.5), [], extractor.follow
    monkeypatch.setattr(extractor, "follow", lambda images, blocks: seen.append(images) or follow(images, blocks))
    write_view(extractor, views, 0, tmp_path, device=TorchDevice("cpu", mixed=True))
    assert torch.equal(torch.cat(seen), views.batch(0, np.arange(len(train))))


def test_the_second_half_but_the_last_block_is_followed():
    architecture = backbone.describe(backbone.template("vit_digits_patch4_8", channels=1, classes=10))
    depth = len(architecture.widths.blocks)
    blocks = stream_blocks(architecture)
    assert blocks == tuple(range((depth - 1) // 2, depth - 1))
    assert stream_bytes(architecture, 1000) == 2 * 1000 * len(blocks) * architecture.tokens * architecture.widths.dim


@pytest.mark.parametrize("mixed", [False, True])
def test_computed_streams_are_those_that_would_be_kept(tmp_path, extractor, mixed):
    train, _ = train_and_validation(tmp_path / "digits", 100)
    views, blocks, device = Views(train, GLYPHS, 3, mix=0.5), (1, 2), TorchDevice("cpu", mixed=mixed)
    write_view(extractor, views, 0, tmp_path, blocks=blocks, device=device)
    (kept,) = open_views([tmp_path])
    index = np.array([7, 3, 60])
    computed = streams_of(extractor, views.batch(0, index), blocks, device)
    assert (computed.dtype, computed.requires_grad) == (torch.float16, False)
    assert np.allclose(computed, kept.streams[index], atol=5e-2 if mixed else 2e-3, rtol=2e-2 if mixed else 2e-3)
