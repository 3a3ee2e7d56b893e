import pytest
from hypothesis import given
from hypothesis import strategies as st

from edvit.plan.partition import partition


@given(st.integers(1, 200), st.integers(1, 250), st.integers(0, 2**32 - 1))
def test_is_a_balanced_partition(classes, groups, seed):
    result = partition(classes, groups, seed)
    assert len(result) == min(groups, classes)
    assert sorted(index for group in result for index in group) == list(range(classes))
    assert all(list(group) == sorted(group) for group in result)
    sizes = [len(group) for group in result]
    assert max(sizes) - min(sizes) <= 1
    assert result == partition(classes, groups, seed)


def test_the_seed_draws():
    assert len({partition(10, 5, seed) for seed in range(20)}) > 15


def test_is_the_same_everywhere():
    """A pinned draw: a bundle built elsewhere from the same seed has the same groups."""
    assert partition(6, 2, seed=1) == ((0, 2, 5), (1, 3, 4))


@pytest.mark.parametrize(("classes", "groups"), [(0, 1), (1, 0), (-1, 2)])
def test_refuses_nothing_to_split(classes, groups):
    with pytest.raises(ValueError, match="at least 1"):
        partition(classes, groups)
