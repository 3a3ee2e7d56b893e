from __future__ import annotations

import pytest

from edvit.builder.vit.backbone import template, why_not_splittable
from edvit.builder.vit.suggest import near
from edvit.errors import ModelError


@pytest.mark.parametrize(
    "name", ["vit_base", "deit_tiny", "vit_tiny_patch16_223", "vit_digit_patch4_8", "vit_small_r26"]
)
def test_only_models_that_can_be_split_are_suggested(name):
    suggested = near(name, why_not_splittable)
    assert 1 <= len(suggested) <= 3
    for model in suggested:
        template(model, classes=10)


def test_names_that_begin_as_typed_come_first():
    assert near("vit_base", why_not_splittable)[0].startswith("vit_base_patch")
    assert near("deit_tiny", why_not_splittable)[0] == "deit_tiny_patch16_224"


def test_a_model_of_another_kind_suggests_none():
    assert near("swin_tiny", why_not_splittable) == []
    with pytest.raises(ModelError, match=r"unknown model 'swin_tiny'; timm\.list_models\('vit_\*'\) lists the names"):
        template("swin_tiny", classes=10)
