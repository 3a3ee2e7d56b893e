"""docs/models.md: every model of its table is built, converted, cut and run, and every line says what comes of it."""

from functools import partial
from pathlib import Path

import pytest
import timm
import torch

import models_table
from edvit.builder.subspace import rms
from edvit.builder.vit import backbone
from edvit.shape.image import ImageSize

PAGE = (Path(__file__).parents[1] / "docs" / "models.md").read_text()
GREY_TOO = [name for name in models_table.NAMES if "base" not in name and "large" not in name]


@pytest.mark.parametrize(
    ("name", "channels"), [*((name, 3) for name in models_table.NAMES), *((name, 1) for name in GREY_TOO)]
)
def test_every_model_of_the_table_can_be_split(name, channels, monkeypatch):
    """With two blocks: all of a model's blocks are alike, and those of the largest take half a minute to draw."""
    monkeypatch.setattr(timm, "create_model", partial(timm.create_model, depth=2))
    torch.set_num_threads(1)
    torch.manual_seed(0)
    patch = backbone.describe(backbone.template(name, classes=10)).patch_size
    size = ImageSize(2 * patch, 3 * patch)  # the smallest that has neighbours and is no square
    base = backbone.create(name, image_size=size, channels=channels, classes=10).eval()
    images = torch.randn(2, channels, *size)
    converted = rms.to_rms(base)
    with torch.inference_mode():
        expected = base(images)
        difference = (converted(images) - expected).abs().max() / expected.abs().max()
    assert float(difference) < 1e-4
    architecture = backbone.describe(base)
    del base, converted
    widths = models_table.widths_at_default(architecture)
    for rotated in (True, False):
        small = backbone.create(
            name, image_size=size, channels=channels, classes=0, widths=widths, rotated=rotated
        ).eval()
        assert backbone.describe(small).widths == widths
        with torch.inference_mode():
            assert backbone.feature(small, images).shape == (2, backbone.describe(small).feature_dim)


def test_the_table_is_up_to_date():
    """`python tests/models_table.py` prints it."""
    assert "\n".join([models_table.HEADER, *map(models_table.row, models_table.NAMES)]) in PAGE
    assert "\n".join([models_table.CONV_HEADER, *map(models_table.conv_row, models_table.CONV_NAMES)]) in PAGE
