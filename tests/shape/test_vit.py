import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from edvit.shape.vit import WIDTH_MULTIPLE, Architecture, BlockWidths, Widths, pruned_widths, round_width

VIT_BASE = Widths(dim=768, blocks=(BlockWidths(heads=12, head_dim=64, hidden=3072),) * 12)


@st.composite
def base_widths(draw):
    """Widths as timm has them: every width a multiple of 8."""
    heads = draw(st.integers(1, 16))
    head_dim = 8 * draw(st.integers(1, 16))
    hidden = 8 * draw(st.integers(1, 512))
    block = BlockWidths(heads=heads, head_dim=head_dim, hidden=hidden)
    return Widths(dim=heads * head_dim, blocks=(block,) * draw(st.integers(1, 4)))


def architecture(**changes):
    values = {"name": "vit", "image_size": 224, "patch_size": 16, "channels": 3, "prefix_tokens": 1, "classes": 10}
    return Architecture(**{**values, "widths": VIT_BASE, **changes})


@given(st.floats(0.001, 1e5))
def test_round_width_is_the_nearest_positive_multiple(width):
    rounded = round_width(width)
    assert rounded % WIDTH_MULTIPLE == 0
    assert rounded >= WIDTH_MULTIPLE
    assert abs(rounded - width) <= WIDTH_MULTIPLE / 2 or rounded == WIDTH_MULTIPLE


@given(base_widths())
def test_keep_ratio_one_changes_nothing(base):
    assert pruned_widths(base, 0, "dims") == pruned_widths(base, 0, "heads") == base


@given(base_widths(), st.data(), st.sampled_from(["dims", "heads"]))
def test_pruned_widths_shrink_by_the_keep_ratio(base, data, mode):
    heads = base.blocks[0].heads
    pruned = data.draw(st.integers(0, heads - 1))
    keep = (heads - pruned) / heads
    widths = pruned_widths(base, pruned, mode)
    assert len(widths.blocks) == len(base.blocks)
    for before, after in [(base.dim, widths.dim), (base.blocks[0].hidden, widths.blocks[0].hidden)]:
        assert after <= before
        assert after % WIDTH_MULTIPLE == 0
        assert abs(after - keep * before) <= WIDTH_MULTIPLE / 2 or after == WIDTH_MULTIPLE
    block = widths.blocks[0]
    if mode == "heads" and pruned:
        assert (block.heads, block.head_dim) == (heads - pruned, base.blocks[0].head_dim)
    else:
        assert block.heads == heads
        assert block.head_dim <= base.blocks[0].head_dim


@given(base_widths(), st.sampled_from(["dims", "heads"]))
def test_pruning_more_never_widens(base, mode):
    heads = base.blocks[0].heads
    series = [pruned_widths(base, pruned, mode) for pruned in range(heads)]
    for wide, narrow in pairwise(series):
        assert narrow.dim <= wide.dim
        assert narrow.blocks[0].attention <= wide.blocks[0].attention
        assert narrow.blocks[0].hidden <= wide.blocks[0].hidden


def test_the_papers_headline_widths():
    """ViT-Base at 2/12: the 34x smaller sub-model."""
    widths = pruned_widths(VIT_BASE, 10, "heads")
    assert (widths.dim, widths.blocks[0].attention, widths.blocks[0].hidden) == (128, 128, 512)


@pytest.mark.parametrize("pruned", [-1, 12, 100])
def test_heads_pruned_out_of_range(pruned):
    with pytest.raises(ValueError, match=r"0\.\.11"):
        pruned_widths(VIT_BASE, pruned)


def test_uneven_heads_are_no_base_model():
    uneven = Widths(dim=64, blocks=(VIT_BASE.blocks[0], BlockWidths(heads=2, head_dim=64, hidden=64)))
    with pytest.raises(ValueError, match="differ"):
        pruned_widths(uneven, 1)


def test_tokens_count_patches_and_prefix():
    assert architecture().tokens == 197
    assert architecture(prefix_tokens=5, image_size=32, patch_size=8).tokens == 21
    assert architecture(prefix_tokens=1, image_size=(96, 160), patch_size=16).tokens == 6 * 10 + 1
    assert architecture().heads == 12


@pytest.mark.parametrize("change", [{"image_size": 0}, {"classes": -1}, {"surprise": 1}])
def test_impossible_shapes_are_refused(change):
    with pytest.raises(ValidationError):
        architecture(**change)


OLD_FIELDS = (
    "name image_size patch_size channels prefix_tokens classes qkv_bias qk_norm layer_scale pre_norm final_norm "
    "proj_bias rms_norm rotated position_embeddings widths"
)


def test_what_is_written_of_a_model_without_later_fields_stays_as_it_was():
    for written in (architecture().model_dump(mode="json"), json.loads(architecture().model_dump_json())):
        assert " ".join(written) == OLD_FIELDS


@pytest.mark.parametrize("later", [{"pool": "avg"}, {"pooled_vectors": 2}, {"pool": "max", "pooled_vectors": 2}])
def test_later_fields_are_written_where_they_say_something(later):
    shape = architecture(**later)
    written = shape.model_dump(mode="json")
    assert {name: written[name] for name in written if name not in OLD_FIELDS.split()} == later
    assert Architecture.model_validate_json(shape.model_dump_json()) == shape


def test_a_feature_holds_every_pooled_vector():
    assert architecture().feature_dim == 768
    assert architecture(pooled_vectors=2).feature_dim == 1536
