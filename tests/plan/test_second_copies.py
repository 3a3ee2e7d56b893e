"""Laws of where second copies go."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from tests.plan.test_greedy import demand, demands, device, fleet_of, fleets

from edvit.fleet import Device
from edvit.plan.greedy import mend, second_copies
from edvit.plan.plan import Demand


@st.composite
def snapshots(draw):
    """Sub-models with first copies anywhere in a fleet, part of which is here, and copies from an earlier time."""
    fleet, submodels = draw(fleets()), draw(demands())
    names = [one.name for one in fleet.devices]
    first = {one.submodel: draw(st.sampled_from(names)) for one in submodels}
    here = [one for one in fleet.devices if draw(st.booleans())]
    before = draw(st.dictionaries(st.sampled_from([one.submodel for one in submodels]), st.sampled_from(names)))
    return submodels, fleet, here, first, before


def load_of(one: Device, submodels: list[Demand], first, copies) -> tuple[int, float]:
    """Bytes and joules of a device that holds first copies and second ones."""
    held = [each for each in submodels if one.name in (first[each.submodel], copies.get(each.submodel))]
    return sum(each.memory_bytes for each in held), sum(each.flops for each in held) / (one.gflops * 1e9) * one.watts


@given(snapshots())
def test_a_copy_is_elsewhere_and_breaks_no_limit(snapshot):
    submodels, _, here, first, before = snapshot
    copies = second_copies(submodels, here, first=first, copies=before)
    assert set(copies.values()) <= {one.name for one in here}
    assert all(name != first[submodel] for submodel, name in copies.items())
    for one in here:
        if one.name in copies.values():
            memory, joules = load_of(one, submodels, first, copies)
            assert memory <= one.memory_bytes
            assert one.energy_j is None or joules <= one.energy_j * (1 + 1e-8)


@given(snapshots())
def test_nothing_moves_without_cause(snapshot):
    submodels, _, here, first, before = snapshot
    copies = second_copies(submodels, here, first=first, copies=before)
    assert second_copies(submodels, here, first=first, copies=copies) == copies
    # A device more moves no copy either; it only takes what had none.
    more = [*here, device("new", 100)]
    assert copies.items() <= second_copies(submodels, more, first=first, copies=copies).items()


@given(snapshots())
def test_a_device_that_leaves_moves_only_what_it_held(snapshot):
    submodels, _, here, first, _ = snapshot
    copies = second_copies(submodels, here, first=first, copies={})
    for gone in here:
        left = [one for one in here if one != gone]
        after = second_copies(submodels, left, first=first, copies=copies)
        assert {k: v for k, v in copies.items() if v != gone.name}.items() <= after.items()


@given(snapshots(), st.randoms(use_true_random=False))
def test_is_a_function_of_the_snapshot_not_of_its_order(snapshot, random):
    submodels, _, here, first, before = snapshot
    copies = second_copies(submodels, here, first=first, copies=before)
    mixed = random.sample(submodels, len(submodels))
    assert second_copies(mixed, here, first=first, copies=before) == copies


@given(snapshots())
def test_what_has_no_copy_fits_nowhere_beside_what_is_there(snapshot):
    submodels, _, here, first, before = snapshot
    copies = second_copies(submodels, here, first=first, copies=before)
    for one in submodels:
        for other in here if one.submodel not in copies else ():
            memory, joules = load_of(other, submodels, first, {**copies, one.submodel: other.name})
            short = memory > other.memory_bytes
            short |= other.energy_j is not None and joules > other.energy_j * (1 - 1e-8)
            assert other.name == first[one.submodel] or short


@given(snapshots())
def test_a_copy_becomes_the_substitute_and_a_new_copy_is_elsewhere(snapshot):
    submodels, fleet, _, planned, _ = snapshot
    everything = list(fleet.devices)
    copies = second_copies(submodels, everything, first=planned, copies={})
    for gone in fleet.devices:
        here = [one for one in everything if one != gone]
        homeless = {submodel for submodel, name in planned.items() if name == gone.name}
        there = {submodel: name for submodel, name in copies.items() if submodel in homeless}
        moved = mend(submodels, fleet, here, planned=planned, homeless=homeless, moved=there)
        assert there.items() <= moved.items()
        after = second_copies(submodels, here, first={**planned, **moved}, copies=copies)
        assert all(after[submodel] != moved[submodel] for submodel in homeless & after.keys())


def test_five_equal_devices_have_two_submodels_each_at_most_but_one():
    fleet = fleet_of(*(device(f"d{i}", 100) for i in range(5)))
    submodels = [demand(i, 10) for i in range(5)]
    first = {i: f"d{i}" for i in range(5)}
    copies = second_copies(submodels, fleet.devices, first=first, copies={})
    assert len(copies) == 5
    assert max(list(copies.values()).count(name) for name in first.values()) <= 2


def test_a_spare_device_takes_the_first_copy():
    here = [device("d0", 100), device("d1", 100), device("spare", 100)]
    copies = second_copies([demand(0, 10), demand(1, 5)], here, first={0: "d0", 1: "d1"}, copies={})
    assert copies[0] == "spare"


def test_one_device_alone_has_no_copies():
    assert second_copies([demand(0, 1)], [device("d0", 100)], first={0: "d0"}, copies={0: "d0"}) == {}
