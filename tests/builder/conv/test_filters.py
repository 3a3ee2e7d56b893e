from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conv_modules import assert_as_described
from edvit.builder.conv import filters, network
from edvit.builder.conv.apoz import Activity
from edvit.errors import BuildError
from edvit.plan.cost import model_cost
from edvit.shape.conv import NAMES, FilterWidths, convnet

torch.set_num_threads(1)


def scores_of(shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    sets = (torch.rand(width, generator=generator, dtype=torch.float64) for width in shape.widths.filters)
    return Activity(tuple(sets))


def model_of(name):
    torch.manual_seed(0)
    model = network.create(convnet(name, image_size=16, channels=1, classes=10))
    model(torch.randn(8, 1, 16, 16))
    return model.eval()


@pytest.mark.parametrize("name", NAMES)
def test_keeping_everything_is_the_identity(name):
    model = model_of(name)
    shape = model.architecture
    same = filters.cut(model, filters.select(scores_of(shape), shape, shape.widths))
    images = torch.randn(3, 1, 16, 16)
    with torch.inference_mode():
        torch.testing.assert_close(same(images), model(images))
    assert not {p.data_ptr() for p in same.parameters()} & {p.data_ptr() for p in model.parameters()}


@pytest.mark.parametrize("name", ["vgg5", "vgg9", "vgg16"])
def test_a_cut_equals_the_network_with_the_other_filters_at_zero(name):
    model = model_of(name)
    shape = model.architecture
    kept = filters.select(scores_of(shape), shape, shape.narrowed(9).widths)
    pruned = filters.cut(model, kept)
    assert_as_described(pruned)
    # A filter whose normalisation gives 0 is 0 after ReLU too, and adds nothing.
    modules = dict(model.named_modules())
    for conv in shape.convs:
        gone = torch.ones(shape.filters(conv), dtype=torch.bool)
        gone[kept[conv.writes]] = False
        modules[conv.norm].weight.data[gone] = 0
        modules[conv.norm].bias.data[gone] = 0
    images = torch.randn(4, 1, 16, 16)
    with torch.inference_mode():
        torch.testing.assert_close(pruned(images), model(images), atol=1e-4, rtol=1e-4)


def test_the_most_active_filters_are_kept_and_ties_go_to_the_lower_index():
    shape = convnet("vgg5", classes=10)
    sets = [torch.full((width,), 0.5, dtype=torch.float64) for width in shape.widths.filters]
    sets[0][20:28] = 0.9
    kept = filters.select(Activity(tuple(sets)), shape, shape.narrowed(8).widths)
    assert kept[0].tolist() == [*range(8), *range(20, 28)]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), pruned=st.integers(0, 15), name=st.sampled_from(["vgg5", "vgg9"]))
def test_fitted_widths_never_exceed_the_budget(seed, pruned, name):
    base = convnet(name, classes=10)
    budget = base.narrowed(pruned).widths
    widths = filters.active_widths(base, scores_of(base, seed), budget)
    cost, limit = (
        model_cost(one.model_copy(update={"classes": 0}))
        for one in (base.model_copy(update={"widths": widths}), base.narrowed(pruned))
    )
    assert cost.params <= limit.params
    assert cost.flops <= limit.flops
    assert cost.peak_memory_bytes <= limit.peak_memory_bytes
    filters.select(scores_of(base, seed), base, widths)


def test_filters_that_are_dear_to_run_are_counted_as_such():
    """The first sets have few parameters and large maps: all of them and few of the last is cheap to store alone."""
    base = convnet("vgg5", classes=10)
    sets = [torch.full((width,), 0.9, dtype=torch.float64) for width in base.widths.filters]
    sets[2:] = [torch.linspace(0, 0.5, len(values), dtype=torch.float64) for values in sets[2:]]
    budget = base.narrowed(8)
    cost, limit = (
        model_cost(base.model_copy(update={"widths": widths, "classes": 0}))
        for widths in (filters.active_widths(base, Activity(tuple(sets)), budget.widths), budget.widths)
    )
    assert cost.flops <= limit.flops
    assert cost.peak_memory_bytes <= limit.peak_memory_bytes


def test_a_budget_of_everything_keeps_what_is_ever_active():
    base = convnet("vgg5", classes=10)
    assert filters.active_widths(base, scores_of(base), base.widths) == base.widths


def test_scores_of_another_network_and_wider_targets_are_refused():
    base = convnet("vgg5", classes=10)
    with pytest.raises(BuildError, match="other widths"):
        filters.select(scores_of(convnet("vgg9", classes=10)), base, base.widths)
    with pytest.raises(BuildError, match="cannot keep"):
        filters.select(scores_of(base), base, FilterWidths(filters=(64, 64, 128, 128)))
