import math

import pytest
from benchmarks.compare.exchange import AllGather, Chain, EncodedImage, FanOut, Work, alone
from benchmarks.compare.links import LinkSpec
from hypothesis import given
from hypothesis import strategies as st

from edvit.errors import ConfigError
from edvit.fleet import Fleet, GatewaySpec, local_fleet
from edvit.plan.cost import communication_s

LINK = LinkSpec(8)  # a megabyte a second
SIZES = st.integers(1, 10**6)
WORK = st.integers(0, 500).map(lambda ms: Work(ms / 1e3))
COUNTS = st.integers(1, 6)


def many(count, values):
    return st.tuples(*[values] * count)


fan_outs = COUNTS.flatmap(lambda n: st.builds(FanOut, SIZES, many(n, WORK), many(n, SIZES), WORK))
chains = COUNTS.flatmap(lambda n: st.builds(Chain, SIZES, many(n, WORK), many(n, SIZES)))
gathers = st.tuples(COUNTS, COUNTS).flatmap(
    lambda p: st.builds(AllGather, SIZES, many(p[1], many(p[0], WORK)), many(p[0], SIZES), many(p[0], SIZES), WORK)
)
exchanges = st.one_of(fan_outs, chains, gathers)


@given(exchanges)
def test_every_step_gets_the_messages_that_it_waits_for(exchange):
    programs = exchange.programs()
    sources = {(node, step): [] for node, program in enumerate(programs) for step in range(len(program))}
    for node, program in enumerate(programs):
        for step in program:
            for send in step.sends:
                sources[send.target, send.step].append(node)
    for (node, step), found in sources.items():
        assert len(found) == len(set(found)) == programs[node][step].waits
    assert exchange.devices == len(programs) - 1


@given(exchanges)
def test_what_is_sent_is_received(exchange):
    assert sum(exchange.sent_bytes()) == sum(exchange.received_bytes()) == exchange.wire_bytes


@given(exchanges, st.integers(1, 1000), st.integers(0, 50), st.integers(0, 50))
def test_a_slower_link_is_never_faster(exchange, mbps, delay_ms, percent):
    link = LinkSpec(mbps, delay_ms, percent / 100)
    fast, slow = exchange.predicted(LinkSpec(mbps)), exchange.predicted(link)
    assert slow.latency_s >= fast.latency_s
    assert slow.images_per_s <= fast.images_per_s
    # One image at a time keeps no resource busier than it can be.
    assert slow.images_per_s >= (1 - 1e-9) / slow.latency_s


def test_bytes_of_each_kind():
    ten = Work(0.01)
    assert FanOut(1000, (ten,) * 3, (10, 20, 30)).wire_bytes == 3 * 1000 + 60
    assert Chain(1000, (ten,) * 3, (500, 400, 40)).wire_bytes == 1000 + 940
    gather = AllGather(1000, ((ten,) * 3,) * 4, (100, 100, 200), (40, 0, 0))
    # Three rounds in which each part goes to two others.
    assert gather.wire_bytes == 3 * 1000 + 3 * 2 * 400 + 40
    assert gather.sent_bytes() == (3000, 3 * 2 * 100 + 40, 3 * 2 * 100, 3 * 2 * 200)
    assert alone(ten, 1000, 40).wire_bytes == 1040


def test_latency_and_throughput_of_each_kind():
    a, b = Work(0.1), Work(0.3)
    fan_out = FanOut(100_000, (a, b), (1000, 1000), Work(0.05)).predicted(LINK)
    assert fan_out.latency_s == pytest.approx(0.2 + 0.3 + 0.001 + 0.05)
    assert fan_out.images_per_s == pytest.approx(1 / 0.3)  # the slower device
    assert FanOut(200_000, (a, b), (1000, 1000)).predicted(LINK).images_per_s == pytest.approx(1 / 0.4)  # the uplink

    chain = Chain(100_000, (a, b), (50_000, 1000)).predicted(LinkSpec(8, 10))
    assert chain.latency_s == pytest.approx(0.1 + 0.05 + 0.001 + 3 * 0.01 + 0.4)
    assert chain.images_per_s == pytest.approx(1 / 0.3)

    gather = AllGather(100_000, ((a, b), (b, a), (a, a)), (10_000, 30_000), (1000, 0), Work(0.05)).predicted(LINK)
    assert gather.latency_s == pytest.approx(0.2 + 0.3 + 0.3 + 0.1 + 2 * 0.03 + 0.001 + 0.05)
    assert gather.images_per_s == pytest.approx(1 / 0.5)

    one = alone(a, 100_000, 1000).predicted(LINK)
    assert (one.latency_s, one.images_per_s) == (pytest.approx(0.201), pytest.approx(1 / 0.101, rel=0.02))


@given(exchanges, st.sampled_from([LINK, LinkSpec(100, 5, 0.01)]))
def test_a_raw_image_is_one_that_is_encoded_in_no_time(exchange, link):
    same = exchange.with_image(EncodedImage(exchange.input_bytes, 0.0, 0.0))
    assert same == exchange
    assert same.predicted(link) == exchange.predicted(link)


def test_encoding_takes_the_gateway_once_and_every_device_that_gets_the_image():
    image = EncodedImage(bytes=10_000, encode_s=0.02, decode_s=0.03)
    a, b = Work(0.1), Work(0.3)
    fan_out = FanOut(100_000, (a, b), (1000, 1000), Work(0.05)).with_image(image)
    assert fan_out.latency_s(LINK) == pytest.approx(0.02 + 2 * 0.01 + 0.33 + 0.001 + 0.05)
    assert fan_out.wire_bytes == 2 * 10_000 + 2000
    assert fan_out.programs()[0][0].work.seconds == 0.02
    assert [step.work.seconds for (step,) in fan_out.programs()[1:]] == [pytest.approx(0.13), pytest.approx(0.33)]

    chain = Chain(100_000, (a, b), (50_000, 1000)).with_image(image)
    assert chain.latency_s(LINK) == pytest.approx(0.02 + 0.01 + 0.03 + 0.1 + 0.05 + 0.3 + 0.001)
    assert chain.programs()[0][0].work.seconds == 0.02

    gather = AllGather(100_000, ((a, b), (b, a)), (10_000, 30_000), (1000, 0), Work(0.05)).with_image(image)
    assert gather.latency_s(LINK) == pytest.approx(0.02 + 2 * 0.01 + 0.33 + 0.03 + 0.3 + 0.001 + 0.05)
    assert gather.programs()[0][0].work.seconds == 0.02


def test_features_share_the_gateways_link():
    work = Work(0.1)
    assert FanOut(1, (work, work), (10**6, 10**6)).latency_s(LINK) == pytest.approx(2.1, abs=1e-4)


@given(COUNTS, SIZES, SIZES, st.integers(1, 1000), st.integers(0, 50))
def test_a_fan_out_is_what_the_plan_says(count, input_bytes, feature_bytes, mbps, delay_ms):
    """Where only one device's feature counts, as in the plan."""
    link = LinkSpec(mbps, delay_ms)
    sizes = (feature_bytes, *[1] * (count - 1))
    work = (Work(1e3), *[Work(0.0)] * (count - 1))
    fleet = local_fleet(count)
    device = fleet.devices[0].model_copy(
        update={"link": fleet.devices[0].link.model_copy(update={"mbps": mbps, "rtt_ms": 2 * delay_ms})}
    )
    fleet = Fleet(name="f", gateway=GatewaySpec(uplink_mbps=mbps), devices=(device,))
    planned = communication_s(fleet, device, devices=count, input_bytes=input_bytes, feature_bytes=feature_bytes)
    assert math.isclose(FanOut(input_bytes, work, sizes).latency_s(link), 1e3 + planned)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Work(-1), "at least 0 s, not -1"),
        (lambda: Work(math.nan), "at least 0 s, not nan"),
        (lambda: FanOut(1, (), ()), "as many features as devices, at least one"),
        (lambda: Chain(1, (Work(1),), (1, 2)), "as many outputs as devices"),
        (lambda: Chain(0, (Work(1),), (1,)), "at least 1 byte, not 0"),
        (lambda: AllGather(1, (), (1,), (1,)), "at least one round"),
        (lambda: AllGather(1, ((Work(1),),), (1,), (0,)), "must send a result"),
        (lambda: AllGather(1, ((Work(1),),), (1, 1), (1, 1)), "as many parts as devices"),
    ],
)
def test_what_makes_no_sense_is_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
