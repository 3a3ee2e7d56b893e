import subprocess
import sys

import numpy as np
import psutil
import pytest
from benchmarks.compare.exchange import AllGather, Chain, FanOut, Work, alone
from benchmarks.compare.links import LinkSpec, means
from benchmarks.compare.namespaces import network
from benchmarks.compare.replay import replay
from benchmarks.compare.replay_node import Settings

from benchmarks.compare import replay as replay_module
from edvit.errors import ConfigError, UnavailableError
from onnx_graphs import fusion, part, plus

LINK = LinkSpec(100)
possible = pytest.mark.skipif(means(LINK).kind != "shaped", reason=means(LINK).reason or "possible")
QUICK = {"images": 3, "warm_up": 1}
MS = Work(0.001)
EXCHANGES = {
    "fan-out": FanOut(5000, (MS, MS), (300, 400), MS),
    "chain": Chain(5000, (MS, MS, MS), (4000, 3000, 40)),
    "all-gather": AllGather(5000, ((MS, MS, MS),) * 3, (2000, 2000, 1000), (768, 0, 0), MS),
    "alone": alone(MS, 5000, 40),
}


def nodes_alive():
    """Processes of replays that this test started."""
    return [child for child in psutil.Process().children(recursive=True) if "replay_node" in " ".join(child.cmdline())]


def floats(data):
    return np.frombuffer(data, "<f4").tolist()


@pytest.mark.parametrize("name", EXCHANGES)
def test_every_byte_of_an_exchange_crosses_between_processes(name):
    exchange = EXCHANGES[name]
    found = replay(exchange, **QUICK)
    assert found.wire_bytes == exchange.wire_bytes
    assert (found.compute, found.where, found.frame_bytes, found.answer) == ("replayed", "loopback", None, b"")
    # A sleep is never shorter than asked for: no image can be quicker than the work that lies on its way.
    assert found.latency_p10_s >= exchange.latency_s(LinkSpec(1e9)) - 0.001
    assert found.latency_p10_s <= found.latency_s <= found.latency_p90_s
    assert found.images_per_s > 0
    assert found.in_flight == 2 * (exchange.devices + 1)
    assert nodes_alive() == []


def test_processes_of_a_replay_load_nothing_of_the_build_world():
    code = "import sys, benchmarks.compare.replay, benchmarks.compare.replay_node; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert not {"torch", "timm", "onnx", "matplotlib"} & set(done.stdout.split())


@possible
@pytest.mark.parametrize("name", ["fan-out", "all-gather"])
def test_the_same_between_namespaces(name):
    exchange = EXCHANGES[name]
    with network(exchange.devices, LINK) as made:
        found = replay(exchange, network=made, **QUICK)
        assert nodes_alive() == []
    assert (found.where, found.wire_bytes) == ("namespaces", exchange.wire_bytes)
    assert found.frame_bytes > found.wire_bytes


def test_a_chain_of_models_gives_what_they_give_one_after_the_other(tmp_path):
    models = [plus(tmp_path / f"{i}.onnx", i + 1, "float32" if i else "uint8", 4) for i in range(3)]
    chain = Chain(4, tuple(Work(1e-4, model) for model in models), (16, 16, 16))
    found = replay(chain, compute="real", image=bytes([1, 2, 3, 250]), **QUICK)
    assert found.compute == "real"
    assert floats(found.answer) == [7, 8, 9, 256]


def test_features_are_fused_in_the_order_of_the_devices(tmp_path):
    models = [plus(tmp_path / f"{i}.onnx", 10 * i, "uint8", 2) for i in range(3)]
    fused = fusion(tmp_path / "fusion.onnx", 6)
    fan_out = FanOut(2, tuple(Work(1e-4, model) for model in models), (8, 8, 8), Work(1e-4, fused))
    assert floats(replay(fan_out, compute="real", image=bytes([1, 2]), **QUICK).answer) == [2, 3, 12, 13, 22, 23]


def test_parts_are_gathered_in_the_order_of_the_devices(tmp_path):
    """Each device adds one to its columns in every round; the second one has the larger part."""
    edges = ((0, 1), (1, 4))

    def round_(kind):
        return tuple(Work(1e-4, part(tmp_path / f"{kind}{start}.onnx", start, stop, kind, 4)) for start, stop in edges)

    gather = AllGather(4, (round_("uint8"), round_("float32"), round_("float32")), (4, 12), (4, 8))
    found = replay(gather, compute="real", image=bytes([1, 2, 3, 4]), **QUICK)
    assert floats(found.answer) == [4, 5, 6]  # of the second device's three columns two are sent
    assert found.wire_bytes == gather.wire_bytes == 2 * 4 + 2 * (4 + 12) + 12


@pytest.mark.parametrize(
    ("exchange", "options", "message"),
    [
        (EXCHANGES["alone"], {"images": 1}, "at least 2 images"),
        (EXCHANGES["alone"], {"in_flight": 0}, "1 in flight"),
        (EXCHANGES["alone"], {"compute": "real"}, "needs an ONNX file; this exchange knows only its seconds"),
    ],
)
def test_settings_that_make_no_sense_are_refused(exchange, options, message):
    with pytest.raises(ConfigError, match=message):
        replay(exchange, **{**QUICK, **options})


@possible
def test_a_network_that_is_too_small_is_refused():
    with network(1, LINK) as made, pytest.raises(ConfigError, match=r"2 devices need as many namespaces, .* has 1"):
        replay(EXCHANGES["fan-out"], network=made, **QUICK)


def test_a_model_that_does_not_fit_the_exchange_is_told_in_one_line(tmp_path):
    work = Work(1e-4, plus(tmp_path / "plus.onnx", 1, "uint8", 4))
    with pytest.raises(UnavailableError, match=r"device 1 ended: plus.onnx: 5 bytes arrived where it takes 4"):
        replay(alone(work, 5, 16), compute="real", **QUICK)
    with pytest.raises(UnavailableError, match=r"device 1 ended: a step gave 16 bytes where the exchange says 17"):
        replay(alone(work, 4, 17), compute="real", **QUICK)
    assert nodes_alive() == []


def test_a_device_that_dies_ends_the_replay(monkeypatch):
    run = replay_module._tell

    def kill_the_last(process, line):
        run(process, line)
        if Settings.from_json(line).node == 2:
            process.kill()

    monkeypatch.setattr(replay_module, "_tell", kill_the_last)
    with pytest.raises(UnavailableError, match="device 2 ended: it printed nothing"):
        replay(EXCHANGES["fan-out"], **QUICK)
    assert nodes_alive() == []


def test_settings_survive_the_way_to_a_process(tmp_path):
    program = FanOut(3, (Work(0.5, tmp_path / "a.onnx"), Work(0.1)), (1, 2)).programs()[1]
    settings = Settings(
        node=1, program=program, endpoints=("tcp/127.0.0.1:1", "tcp/127.0.0.1:2"), real=True, image=b"\x00\xff",
        warm_up=1, images=2, in_flight=3, deadline_s=4.0,
    )  # fmt: skip
    assert Settings.from_json(settings.to_json()) == settings
    assert settings.total == 1 + 2 + 2 + 2 * 3
