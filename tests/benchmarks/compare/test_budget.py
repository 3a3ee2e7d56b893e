from fractions import Fraction

import pytest
from benchmarks.compare.budget import FINENESS, keep_within
from hypothesis import given, settings
from hypothesis import strategies as st

from edvit.builder.models.family import family_of
from edvit.errors import ConfigError
from edvit.plan.cost import model_cost
from tiny_build import MODEL

BASES = {
    name: family_of(name).plan(name, image_size=size, channels=1, classes=10)
    for name, size in ((MODEL, 8), ("vgg5", 16))
}


def size_of(base, keep, rotated):
    form = base.rotated_form() if rotated else base
    narrow = form.narrowed(base.keep_steps * (1 - keep)).model_copy(update={"classes": 0})
    return model_cost(narrow).weight_bytes


@settings(deadline=None)
@given(name=st.sampled_from(sorted(BASES)), share=st.floats(0.1, 1.5))
def test_the_gentlest_keep_ratio_within_the_budget(name, share):
    base, rotated = BASES[name], name == MODEL
    budget = share * model_cost(base).weight_bytes
    step = Fraction(1, base.keep_steps * FINENESS)
    try:
        keep = keep_within(base, budget, rotated=rotated)
    except ConfigError:
        assert size_of(base, step, rotated) > budget
        return
    assert size_of(base, keep, rotated) <= budget
    assert keep == 1 or size_of(base, keep + step, rotated) > budget


def test_too_small_a_budget_names_what_is_needed():
    with pytest.raises(ConfigError, match=r"a budget of 0\.001 MB a device is too little for vgg5: .* takes .* MB"):
        keep_within(BASES["vgg5"], 1000, rotated=False)
