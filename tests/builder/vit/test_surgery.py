from __future__ import annotations

import dataclasses
import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edvit.builder.vit import backbone
from edvit.builder.vit.gates import gated, open_gates
from edvit.builder.vit.scores import Scores
from edvit.builder.vit.surgery import BlockSelection, Selection, prune, select
from edvit.errors import BuildError
from edvit.shape.vit import BlockWidths, Widths, pruned_widths
from selection_gates import mask
from vit_variants import CLASSES, VARIANTS, images, make

torch.set_num_threads(1)


def random_scores(widths: Widths, seed: int = 0) -> Scores:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    depth, block = len(widths.blocks), widths.blocks[0]
    return Scores(
        draw(widths.dim),
        draw(depth, block.heads, block.head_dim),
        draw(depth, block.heads),
        draw(depth, block.hidden),
        "random",
    )


def selection_for(model, target: Widths, seed: int = 0) -> Selection:
    base = backbone.describe(model)
    return select(random_scores(base.widths, seed), base, target)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("mode", ["dims", "heads"])
def test_a_mask_in_place_of_surgery_gives_the_same_output(variant, mode):
    model, x = make(variant), images()
    widths = backbone.describe(model).widths
    selection = selection_for(model, pruned_widths(widths, 1, mode))
    pruned = prune(model, selection)
    with torch.no_grad():
        base, cut = model(x), pruned(x)
        with gated(model, mask(selection, widths, x)):
            masked = model(x)
    assert (cut - masked).abs().max() < 1e-5
    assert (cut - base).abs().max() > 1e-2, "pruning a third must change the output of a random model"


@pytest.mark.parametrize("variant", VARIANTS)
def test_keeping_everything_keeps_the_output(variant):
    model, x = make(variant), images()
    widths = backbone.describe(model).widths
    pruned = prune(model, selection_for(model, widths))
    with torch.no_grad():
        assert (model(x) - pruned(x)).abs().max() < 1e-6
        assert (backbone.feature(model, x) - backbone.feature(pruned, x)).abs().max() < 1e-6


@pytest.mark.parametrize("variant", VARIANTS)
def test_open_gates_change_nothing(variant):
    model, x = make(variant).double(), images().double()
    widths = backbone.describe(model).widths
    with torch.no_grad():
        plain = model(x)
        with gated(model, open_gates(widths, len(x), x)):
            open_ = model(x)
        again = model(x)
    assert (plain - open_).abs().max() < 1e-10
    assert torch.equal(plain, again), "gates must be gone after the with"


def test_open_gates_change_nothing_in_float32():
    model, x = make("plain"), images()
    with torch.no_grad(), gated(model, open_gates(backbone.describe(model).widths, len(x), x)):
        gated_output = model(x)
    with torch.no_grad():
        plain = model(x)
    # The gated norm sums in another order, and every kernel rounds in its own: some units in the last place of the
    # largest value, also where a sum of large terms is small.
    rounding = torch.finfo(torch.float32).eps * float(plain.abs().max())
    assert (gated_output - plain).abs().max() <= 32 * rounding


def test_gates_are_per_sample():
    model, x = make("plain").double(), images(2).double()
    widths = backbone.describe(model).widths
    gates = open_gates(widths, 2, x)
    gates.dim[0, 3] = 0.0
    gates.blocks[1].attn[0, 2, 5] = 0.0
    gates.blocks[2].hidden[0, 7] = 0.0
    with torch.no_grad():
        with gated(model, gates):
            output = model(x)
        plain = model(x)
    assert (output[1] - plain[1]).abs().max() < 1e-10
    assert (output[0] - plain[0]).abs().max() > 1e-6


@st.composite
def selections(draw):
    def some(width: int, least: int = 1) -> torch.Tensor:
        kept = draw(st.sets(st.integers(0, width - 1), min_size=least, max_size=width))
        return torch.tensor(sorted(kept))

    blocks = []
    for _ in range(3):
        heads = some(3)
        count = draw(st.integers(1, 8))
        rows = [draw(st.permutations(range(8)))[:count] for _ in range(len(heads))]
        blocks.append(BlockSelection(heads, torch.tensor([sorted(row) for row in rows]), some(48)))
    # Two channels after LayerNorm are always +1 and -1: rounding is amplified without bound when they are close.
    return Selection(some(24, least=4), tuple(blocks))


@functools.cache
def double_model(variant: str):
    return make(variant).double()


@settings(max_examples=25, deadline=None)
@given(selections(), st.sampled_from(["plain", "layer_scale", "reg_tokens", "pre_norm", "avg_pool"]))
def test_any_selection_is_masked_and_cut_alike(selection, variant):
    model, x = double_model(variant), images(2).double()
    pruned = prune(model, selection)
    assert backbone.describe(pruned).widths == selection.widths
    with torch.no_grad():
        cut = pruned(x)
        with gated(model, mask(selection, backbone.describe(model).widths, x)):
            masked = model(x)
    assert (cut - masked).abs().max() < 1e-5


def test_widths_may_differ_from_block_to_block():
    model, x = make("plain"), images()
    blocks = (
        BlockWidths(heads=3, head_dim=4, hidden=40),
        BlockWidths(heads=1, head_dim=8, hidden=8),
        BlockWidths(heads=2, head_dim=8, hidden=48),
    )
    target = Widths(dim=20, blocks=blocks)
    selection = selection_for(model, target)
    pruned = prune(model, selection)
    assert backbone.describe(pruned).widths == target
    with torch.no_grad():
        cut = pruned(x)
        with gated(model, mask(selection, backbone.describe(model).widths, x)):
            masked = model(x)
    assert (cut - masked).abs().max() < 1e-5


def test_the_old_model_is_untouched_and_shares_no_memory():
    model = make("plain")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pruned = prune(model, selection_for(model, backbone.describe(model).widths))
    with torch.no_grad():
        for parameter in pruned.parameters():
            parameter.add_(1.0)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_the_result_can_be_trained_and_pruned_again():
    model = make("plain")
    pruned = prune(model, selection_for(model, pruned_widths(backbone.describe(model).widths, 1)))
    assert not pruned.training
    pruned.train()(images()).sum().backward()
    assert all(parameter.grad is not None for parameter in pruned.parameters())
    again = prune(
        pruned, selection_for(pruned, Widths(dim=8, blocks=(BlockWidths(heads=1, head_dim=8, hidden=8),) * 3))
    )
    assert again(images()).shape == (4, CLASSES)
    assert prune(pruned, selection_for(pruned, backbone.describe(pruned).widths)).training


def test_select_keeps_the_best():
    model = make("plain")
    base = backbone.describe(model)
    scores = random_scores(base.widths)
    dims = select(scores, base, pruned_widths(base.widths, 1, "dims"))
    assert dims.dim.tolist() == sorted(scores.dim.topk(16).indices.tolist())
    assert dims.blocks[1].hidden.tolist() == sorted(scores.hidden[1].topk(32).indices.tolist())
    heads = select(scores, base, pruned_widths(base.widths, 1, "heads"))
    assert heads.blocks[2].heads.tolist() == sorted(scores.heads[2].topk(2).indices.tolist())
    narrow = Widths(dim=24, blocks=(BlockWidths(heads=3, head_dim=3, hidden=48),) * 3)
    kept = select(scores, base, narrow).blocks[0]
    for head in range(3):
        assert kept.head_dims[head].tolist() == sorted(scores.attn[0, head].topk(3).indices.tolist())


def test_select_breaks_ties_by_the_lower_index():
    base = backbone.describe(make("plain"))
    flat = random_scores(base.widths)
    flat = dataclasses.replace(flat, dim=torch.ones_like(flat.dim))
    assert select(flat, base, pruned_widths(base.widths, 1)).dim.tolist() == list(range(16))


def test_with_qk_norm_all_heads_of_a_block_keep_the_same_dimensions():
    base = backbone.describe(make("qk_norm"))
    scores = random_scores(base.widths)
    narrow = Widths(dim=24, blocks=(BlockWidths(heads=3, head_dim=3, hidden=48),) * 3)
    kept = select(scores, base, narrow).blocks[0].head_dims
    expected = sorted(scores.attn[0].sum(dim=0).topk(3).indices.tolist())
    assert kept.tolist() == [expected] * 3


def test_select_refuses_what_does_not_fit():
    base = backbone.describe(make("plain"))
    wide = Widths(dim=32, blocks=base.widths.blocks)
    with pytest.raises(BuildError, match="cannot keep 32 of 24"):
        select(random_scores(base.widths), base, wide)
    with pytest.raises(BuildError, match="scores are of a model of other widths"):
        select(random_scores(wide), base, base.widths)
    with pytest.raises(BuildError, match="2 blocks"):
        select(random_scores(base.widths), base, Widths(dim=8, blocks=base.widths.blocks[:2]))


def broken(selection: Selection, **changes) -> Selection:
    first = dataclasses.replace(selection.blocks[0], **changes)
    return dataclasses.replace(selection, blocks=(first, *selection.blocks[1:]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": torch.tensor([0, 48])}, r"blocks\.0\.hidden"),
        ({"hidden": torch.tensor([3, 3])}, r"blocks\.0\.hidden"),
        ({"hidden": torch.tensor([], dtype=torch.int64)}, r"blocks\.0\.hidden"),
        ({"heads": torch.tensor([-1, 0, 1])}, r"blocks\.0\.heads"),
        ({"head_dims": torch.tensor([[0, 1]])}, r"blocks\.0\.head_dims"),
        ({"head_dims": torch.tensor([[0, 1], [0, 1], [0, 8]])}, r"blocks\.0\.head_dims"),
    ],
)
def test_prune_refuses_a_selection_of_another_model(change, message):
    model = make("plain")
    selection = selection_for(model, backbone.describe(model).widths)
    with pytest.raises(BuildError, match=message):
        prune(model, broken(selection, **change))


def test_prune_refuses_heads_that_differ_under_qk_norm():
    model = make("qk_norm")
    selection = selection_for(model, backbone.describe(model).widths)
    uneven = torch.tensor([[0, 1], [0, 2], [0, 1]])
    with pytest.raises(BuildError, match="every head must keep the same"):
        prune(model, broken(selection, head_dims=uneven))


def test_prune_refuses_a_parameter_it_has_no_rule_for():
    model = make("plain")
    model.extra = torch.nn.Parameter(torch.zeros(3))
    with pytest.raises(BuildError, match="no rule for parameter extra"):
        prune(model, selection_for(model, backbone.describe(model).widths))


def test_prune_checks_its_result_against_the_template():
    model = make("plain")
    selection = selection_for(model, backbone.describe(model).widths)
    model.head = torch.nn.Linear(24, 7)
    with pytest.raises(BuildError, match=r"head\.weight \[7, 24\], \[5, 24\] was expected"):
        prune(model, selection)
