"""Laws of the greedy assignment, its errors, and where it differs from the best possible one."""

import itertools
import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edvit.errors import ConfigError, InfeasibleError
from edvit.fleet import Device, Fleet, local_fleet
from edvit.plan.greedy import assign, mend, place
from edvit.plan.keep import smallest_keep
from edvit.plan.partition import partition
from edvit.plan.plan import Demand
from edvit.shape.image import ImageSize
from edvit.shape.vit import Architecture, BlockWidths, Widths

BASE = Architecture(
    name="deit_tiny_patch16_224",
    image_size=224,
    patch_size=16,
    channels=3,
    prefix_tokens=1,
    classes=10,
    widths=Widths(dim=192, blocks=(BlockWidths(heads=6, head_dim=32, hidden=768),) * 4),
)


def device(
    name: str, memory_mb: float, energy_j: float | None = None, gflops: float = 1.0, watts: float = 1.0
) -> Device:
    return Device(name=name, memory_mb=memory_mb, energy_j=energy_j, gflops=gflops, watts=watts)


def fleet_of(*devices: Device) -> Fleet:
    return Fleet(name="test", devices=devices)


def demand(submodel: int, megabytes: float, gflops: float = 0.1) -> Demand:
    return Demand(submodel=submodel, memory_bytes=int(megabytes * 1e6), flops=int(gflops * 1e9))


@st.composite
def fleets(draw, most: int = 5) -> Fleet:
    count = draw(st.integers(1, most))
    return fleet_of(
        *(
            device(
                f"d{i}",
                memory_mb=draw(st.integers(1, 30)),
                energy_j=draw(st.none() | st.floats(0.01, 2.0)),
                gflops=draw(st.sampled_from([1.0, 2.5, 12.0])),
                watts=draw(st.sampled_from([1.0, 6.0])),
            )
            for i in range(count)
        )
    )


@st.composite
def demands(draw, most: int = 6) -> list[Demand]:
    """As sub-models of one base: what needs more memory takes no fewer operations."""
    count = draw(st.integers(1, most))
    megabytes = sorted(draw(st.lists(st.integers(1, 20), min_size=count, max_size=count)))
    gflops = sorted(draw(st.lists(st.floats(0.001, 1.0), min_size=count, max_size=count)))
    ids = draw(st.permutations(range(count)))
    return [demand(i, m, g) for i, m, g in zip(ids, megabytes, gflops, strict=True)]


def within_limits(fleet: Fleet, submodels: list[Demand], placement) -> bool:
    for one in fleet.devices:
        held = [d for d in submodels if placement[d.submodel] == one.name]
        joules = sum(d.flops for d in held) / (one.gflops * 1e9) * one.watts
        if sum(d.memory_bytes for d in held) > one.memory_bytes:
            return False
        if one.energy_j is not None and joules > one.energy_j * (1 + 1e-9):
            return False
    return True


def is_feasible(fleet: Fleet, submodels: list[Demand]) -> bool:
    """Brute force over all K^N placements."""
    names = [one.name for one in fleet.devices]
    return any(
        within_limits(fleet, submodels, dict(zip((d.submodel for d in submodels), choice, strict=True)))
        for choice in itertools.product(names, repeat=len(submodels))
    )


# --- place -------------------------------------------------------------------------------------------------


@given(demands(), fleets())
def test_places_each_once_and_breaks_no_limit(submodels, fleet):
    try:
        placement = place(submodels, fleet)
    except InfeasibleError:
        return
    assert sorted(placement) == sorted(d.submodel for d in submodels)
    assert within_limits(fleet, submodels, placement)


@given(demands(), fleets(), st.randoms(use_true_random=False))
def test_is_a_function_of_the_demands_not_of_their_order(submodels, fleet, random):
    shuffled = list(submodels)
    random.shuffle(shuffled)

    def outcome(those):
        try:
            return place(those, fleet)
        except InfeasibleError as error:
            return str(error)

    assert outcome(submodels) == outcome(shuffled)


@settings(max_examples=300)
@given(demands(most=4), fleets(most=4))
def test_finds_a_device_each_where_there_is_one(submodels, fleet):
    """If the sub-models fit one to a device in any way, they are placed, each on a device of its own."""
    names = [one.name for one in fleet.devices]
    ids = [d.submodel for d in submodels]
    exists = any(
        within_limits(fleet, submodels, dict(zip(ids, choice, strict=True)))
        for choice in itertools.permutations(names, len(ids))
    )
    if exists:
        assert len(set(place(submodels, fleet).values())) == len(ids)


@settings(max_examples=150)
@given(demands(most=4), fleets(most=3))
def test_never_claims_what_brute_force_cannot(submodels, fleet):
    if not is_feasible(fleet, submodels):
        with pytest.raises(InfeasibleError):
            place(submodels, fleet)


def test_may_fail_where_a_placement_exists():
    """The price of greed: 3 + 3 and 2 + 2 + 2 fill two devices of 6, but spreading from the largest strands a 2."""
    submodels = [demand(i, megabytes) for i, megabytes in enumerate([3, 3, 2, 2, 2])]
    fleet = fleet_of(device("a", 6), device("b", 6))
    assert is_feasible(fleet, submodels)
    with pytest.raises(InfeasibleError) as caught:
        place(submodels, fleet)
    assert caught.value.submodel == 4
    assert caught.value.shortfall == 1_000_000


def test_more_energy_on_one_device_may_strand_a_submodel():
    """Another price of greed: the richer b draws the largest sub-model, and no place with memory is left."""
    submodels = [demand(0, 6, gflops=0.6), demand(1, 5, gflops=0.5), demand(2, 5, gflops=0.5)]
    tight = device("a", 7, energy_j=1.2)
    assert place(submodels, fleet_of(tight, device("b", 10, energy_j=1.1))) == {0: "a", 1: "b", 2: "b"}
    richer = fleet_of(tight, device("b", 10, energy_j=1.5))
    assert is_feasible(richer, submodels)
    with pytest.raises(InfeasibleError):
        place(submodels, richer)


def test_spreads_over_equal_devices_and_leaves_spare_ones_free():
    submodels = [demand(i, 5) for i in range(5)]
    assert sorted(place(submodels, local_fleet(5)).values()) == [f"dev-{i}" for i in range(1, 6)]
    assert len(set(place(submodels, local_fleet(9)).values())) == 5


@given(st.integers(1, 12), st.integers(1, 6))
def test_loads_of_equal_devices_differ_by_at_most_one(count, devices):
    placement = place([demand(i, 1) for i in range(count)], local_fleet(devices))
    loads = [list(placement.values()).count(f"dev-{i + 1}") for i in range(devices)]
    assert max(loads) - min(loads) <= 1


def test_prefers_remaining_energy_then_speed_then_memory():
    one = [demand(0, 5)]
    assert place(one, fleet_of(device("a", 10, energy_j=1), device("b", 10, energy_j=2)))[0] == "b"
    assert place(one, fleet_of(device("a", 10, energy_j=9), device("b", 10)))[0] == "b"
    assert place(one, fleet_of(device("a", 10), device("b", 10, gflops=2)))[0] == "b"
    assert place(one, fleet_of(device("a", 10), device("b", 11)))[0] == "b"
    assert place(one, fleet_of(device("a", 10), device("b", 10)))[0] == "a"


def test_a_free_device_comes_before_a_richer_one():
    """Otherwise one device without an energy limit would take every sub-model while the others idle."""
    fleet = fleet_of(device("mains", 100), device("battery-1", 100, energy_j=1), device("battery-2", 100, energy_j=1))
    assert place([demand(i, 5) for i in range(3)], fleet) == {0: "mains", 1: "battery-1", 2: "battery-2"}


def test_the_largest_demand_chooses_first():
    fleet = fleet_of(device("small", 5, energy_j=9), device("large", 20, energy_j=1))
    assert place([demand(0, 4, gflops=0.1), demand(1, 10, gflops=0.5)], fleet) == {0: "small", 1: "large"}


def test_memory_failure_is_named_and_measured():
    with pytest.raises(InfeasibleError, match=r"sub-model 0 .* 10 MB, and b, the roomiest, lacks 3 MB") as caught:
        place([demand(0, 10)], fleet_of(device("a", 5), device("b", 7)))
    assert (caught.value.constraint, caught.value.shortfall) == ("memory", 3_000_000)


def test_energy_failure_is_named_and_measured():
    fleet = fleet_of(device("a", 50, energy_j=0.25), device("b", 50, energy_j=0.5), device("tiny", 1))
    with pytest.raises(InfeasibleError, match=r"takes 1 J, and b, the nearest to it, lacks 0\.5 J") as caught:
        place([demand(0, 10, gflops=1.0)], fleet)
    assert caught.value.constraint == "energy"
    assert caught.value.shortfall == pytest.approx(0.5)


# --- assign ------------------------------------------------------------------------------------------------


def attempt(fleet: Fleet, groups: int = 3, heads_pruned: int | Fraction = 3, mode="dims", base=BASE):
    try:
        return assign(base, partition(10, groups), fleet, heads_pruned=heads_pruned, mode=mode)
    except InfeasibleError as error:
        return error


@settings(max_examples=60)
@given(fleets(most=4), st.integers(1, 5), st.integers(0, 5), st.sampled_from(["dims", "heads"]))
def test_a_plan_holds_its_limits(fleet, groups, heads_pruned, mode):
    plan = attempt(fleet, groups, heads_pruned, mode)
    if isinstance(plan, InfeasibleError):
        assert plan.shortfall > 0
        assert f"keep ratio {'1/6' if mode == 'heads' else '0.01042'} for all" in str(plan)
        return
    assert [submodel.id for submodel in plan.submodels] == list(range(groups))
    assert sorted(c for submodel in plan.submodels for c in submodel.classes) == list(range(10))
    assert all(submodel.heads_pruned >= heads_pruned for submodel in plan.submodels)
    assert sorted(i for load in plan.loads for i in load.submodels) == list(range(groups))
    for load in plan.loads:
        assert load.memory_bytes <= load.device.memory_bytes
        if load.device.energy_j is not None:
            assert load.energy_j <= load.device.energy_j * (1 + 1e-9)
    assert plan.latency_s == pytest.approx(max(load.latency_s for load in plan.loads) + plan.fusion_s)
    assert plan == attempt(fleet, groups, heads_pruned, mode)


@settings(max_examples=60)
@given(fleets(most=3), st.integers(1, 4))
def test_an_infeasible_plan_cannot_be_placed_greedily_even_at_the_smallest_width(fleet, groups):
    plan = attempt(fleet, groups)
    if isinstance(plan, InfeasibleError):
        assert isinstance(attempt(fleet, groups, heads_pruned=NARROWEST), InfeasibleError)


NARROWEST = BASE.heads * (1 - smallest_keep(BASE))
# Of which weights are most, and not what attention holds.
SMALL = BASE.model_copy(update={"image_size": ImageSize(32, 32)})
SMALL_MB = assign(SMALL, [[0]], local_fleet(1), heads_pruned=NARROWEST).submodels[0].cost.peak_memory_bytes / 1e6
starts = st.fractions(0, NARROWEST, max_denominator=32)


@settings(max_examples=60)
@given(st.lists(st.floats(0.5, 4), min_size=1, max_size=3), st.integers(1, 4), starts, starts)
def test_whether_there_is_a_plan_does_not_depend_on_where_it_starts(sizes, groups, one, other):
    """On devices that hold none or a few of the narrowest sub-models."""
    tight = fleet_of(*(device(f"d{i}", SMALL_MB * size) for i, size in enumerate(sizes)))
    first, second = (attempt(tight, groups, heads_pruned, base=SMALL) for heads_pruned in (one, other))
    assert isinstance(first, InfeasibleError) == isinstance(second, InfeasibleError)
    assert isinstance(first, InfeasibleError) == (sum(int(size + 1e-6) for size in sizes) < groups)


@given(st.integers(0, 5))
def test_whether_there_is_a_plan_does_not_depend_on_where_it_starts_in_whole_heads(heads_pruned):
    fits = assign(BASE, [[0]], local_fleet(1), heads_pruned=5, mode="heads").submodels[0].cost.peak_memory_bytes
    assert not isinstance(attempt(fleet_of(device("a", fits / 1e6)), 1, heads_pruned, "heads"), InfeasibleError)
    assert isinstance(attempt(fleet_of(device("a", fits / 1e6 - 0.01)), 1, heads_pruned, "heads"), InfeasibleError)


def test_a_model_of_one_head_is_narrowed_as_well():
    base = BASE.model_copy(update={"widths": Widths(dim=64, blocks=(BlockWidths(heads=1, head_dim=64, hidden=256),))})
    whole = assign(base, [[0]], local_fleet(1), heads_pruned=0).submodels[0].cost.peak_memory_bytes / 1e6
    (submodel,) = assign(base, [[0]], fleet_of(device("a", whole - 0.1)), heads_pruned=0).submodels
    assert 0 < submodel.heads_pruned < 1


def test_goes_below_one_head_only_once_nothing_else_helps():
    """Two on one device, which holds two of one head, but not two of two."""
    one, two = (
        assign(BASE, [[0]], local_fleet(1), heads_pruned=h_p).submodels[0].cost.peak_memory_bytes / 1e6
        for h_p in (5, 4)
    )
    roomy = assign(BASE, partition(10, 2), fleet_of(device("only", one + two - 0.01)), heads_pruned=4)
    assert [submodel.heads_pruned for submodel in roomy.submodels] == [5, 5]
    tight = assign(BASE, partition(10, 2), fleet_of(device("only", 2 * one - 0.01)), heads_pruned=4)
    assert [submodel.heads_pruned for submodel in tight.submodels] == [5, Fraction(41, 8)]


def test_prunes_nothing_more_where_all_fits():
    plan = assign(BASE, partition(10, 5), local_fleet(5), heads_pruned=4)
    assert [submodel.heads_pruned for submodel in plan.submodels] == [4] * 5
    assert plan.devices_used == 5


def test_prunes_more_only_what_does_not_fit():
    widest = assign(BASE, [[0]], local_fleet(1), heads_pruned=0).submodels[0].cost.peak_memory_bytes / 1e6
    fleet = fleet_of(device("large", widest + 1), device("small", widest / 2))
    first, second = assign(BASE, partition(10, 2), fleet, heads_pruned=0).submodels
    assert (first.device, first.heads_pruned) == ("large", 0)
    assert second.device == "small"
    assert second.heads_pruned > 0


def test_prunes_others_when_one_cannot_be_pruned_more():
    """Two sub-models on one device: the second alone cannot make room, so the first gives way as well."""
    smallest = assign(BASE, [[0]], local_fleet(1), heads_pruned=5).submodels[0].cost.peak_memory_bytes / 1e6
    plan = assign(BASE, partition(10, 2), fleet_of(device("only", 2 * smallest + 0.1)), heads_pruned=0)
    assert [submodel.heads_pruned for submodel in plan.submodels] == [5, 5]


@pytest.mark.parametrize(
    ("mode", "advice"),
    [
        ("dims", r"keep ratio 0\.01042 for all, whatever --keep starts from; raise memory_mb, add devices"),
        (
            "heads",
            r"keep ratio 1/6 for all, whatever --keep .*; narrow the heads \(--attention dims\), raise memory_mb",
        ),
    ],
)
def test_infeasible_says_what_to_do(mode, advice):
    with pytest.raises(InfeasibleError, match=advice) as caught:
        assign(BASE, partition(10, 2), fleet_of(device("a", 0.1)), heads_pruned=0, mode=mode)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("heads_pruned", [-1, 6])
def test_heads_pruned_out_of_range(heads_pruned):
    with pytest.raises(ConfigError, match="0 to 5"):
        assign(BASE, [[0]], local_fleet(1), heads_pruned=heads_pruned)


def test_no_groups():
    with pytest.raises(ConfigError, match="at least one"):
        assign(BASE, [], local_fleet(1), heads_pruned=0)


def test_info_is_what_the_bundle_records():
    plan = assign(BASE, partition(10, 3), local_fleet(4), heads_pruned=3)
    info = plan.info()
    assert [line.submodel for line in info.placed] == [0, 1, 2]
    assert [line.device for line in info.placed] == [submodel.device for submodel in plan.submodels]
    assert info.latency_s == plan.latency_s
    assert math.isclose(sum(line.energy_j for line in info.placed), sum(load.energy_j for load in plan.loads))


@given(st.integers(1, 6), st.integers(2, 5), st.randoms(use_true_random=False))
def test_mending_moves_only_what_is_homeless_and_keeps_to_memory(count, size, chance):
    demands = [Demand(i, chance.randint(1, 9) * 1_000_000, 1000) for i in range(count)]
    devices = tuple(Device.model_validate({"name": f"d{i}", "memory_mb": chance.randint(5, 20)}) for i in range(size))
    fleet = Fleet(name="f", devices=devices)
    planned = {i: f"d{chance.randrange(size)}" for i in range(count)}
    here = [device for device in devices if chance.random() < 0.6]
    names = {device.name for device in here}
    homeless = {i for i, name in planned.items() if name not in names}
    moved = mend(demands, fleet, here, planned=planned, homeless=homeless, moved={})
    assert set(moved) <= homeless
    assert set(moved.values()) <= names
    for device in here:
        used = sum(demands[i].memory_bytes for i, name in moved.items() if name == device.name)
        stays = sum(demands[i].memory_bytes for i, name in planned.items() if name == device.name)
        assert used == 0 or used + stays <= device.memory_bytes
    # Asked again, nothing moves; and once all are back, nothing is away from home.
    assert mend(demands, fleet, here, planned=planned, homeless=homeless, moved=moved) == moved
    assert mend(demands, fleet, devices, planned=planned, homeless=set(), moved=moved) == {}
