"""`edvit device` as users run it: real processes, real sockets, real signals."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import threading
import time

import psutil
import pytest

from device_processes import EDVIT, process_fleet
from edvit.errors import UnavailableError, WireError
from edvit.runtime.predictor import LocalPredictor
from edvit.runtime.wire.header import encode
from edvit.runtime.wire.messages import InferRequest, InfoRequest
from edvit.runtime.wire.packet import Packet
from edvit.runtime.wire.topics import INFER, INFO, LOAD
from edvit.runtime.wire.transport import Failure, Reply
from fleet_in_memory import some_images
from free_port import free_endpoint
from tiny_bundle import write_tiny_bundle
from waiting import eventually

LONG_S = 60.0


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_tiny_bundle(tmp_path_factory.mktemp("system") / "bundle", submodels=2, classes=4)


@pytest.fixture
def fleet(bundle, tmp_path):
    with process_fleet(bundle, tmp_path / "cache") as fleet:
        yield fleet


@pytest.fixture
def local(bundle):
    return LocalPredictor(bundle)


def test_predictions_over_the_network_equal_those_of_one_process(fleet, bundle, local):
    one, two = fleet.device("dev-1"), fleet.device("dev-2")
    gateway = fleet.gateway()
    for batch in (1, 7):
        images = some_images(bundle, batch, seed=batch)
        prediction, expected = gateway.predict(images), local.predict(images)
        assert not prediction.degraded
        assert prediction.logits.tobytes() == expected.logits.tobytes()
        assert prediction.probabilities.tobytes() == expected.probabilities.tobytes()
    assert [device.pid for device in gateway.devices()] == [one.pid, two.pid]
    eventually(lambda: one.says("dev-1: started, looking for the gateway of fleet local"))
    eventually(lambda: one.says("dev-1: sub-model 0: 0.0 MB, ready after"))


def test_a_device_killed_in_mid_request_degrades_the_answer(fleet, bundle, local):
    """Stopped first, so that the request surely waits for it; killed then: long before the deadline."""
    images = some_images(bundle)
    fleet.device("dev-1")
    victim = fleet.device("dev-2")
    gateway = fleet.gateway(deadline_s=LONG_S)
    victim.stop()
    results = []
    thread = threading.Thread(target=lambda: results.append(gateway.predict(images)))
    start = time.monotonic()
    thread.start()
    time.sleep(0.3)
    assert not results
    victim.kill()
    thread.join(LONG_S)
    assert time.monotonic() - start < LONG_S
    assert results[0].missing == (1,)
    assert results[0].logits.tobytes() == local.predict(images, absent=[1]).logits.tobytes()
    # And its return mends it.
    fleet.device("dev-2")
    eventually(lambda: not gateway.predict(images).degraded, 60)
    gateway.wait_ready(60)
    assert gateway.predict(images).logits.tobytes() == local.predict(images).logits.tobytes()


def test_a_hung_device_costs_the_deadline_and_no_more(fleet, bundle):
    fleet.device("dev-1")
    hung = fleet.device("dev-2")
    gateway = fleet.gateway(deadline_s=0.5)
    hung.stop()
    assert gateway.predict(some_images(bundle)).missing == (1,)
    hung.go_on()
    eventually(lambda: not gateway.predict(some_images(bundle)).degraded)


def test_a_hung_device_holds_up_no_other(fleet, tmp_path):
    """Batches that no queue holds: sending the second one to it waits for seconds."""
    fleet.bundle = write_tiny_bundle(tmp_path / "large", submodels=2, classes=4, size=224)
    hung = fleet.device("dev-1")
    fleet.device("dev-2")
    gateway = fleet.gateway(deadline_s=0.7)
    images = some_images(fleet.bundle, batch=16)
    hung.stop()
    assert [gateway.predict(images).missing for _ in range(4)] == [(0,)] * 4
    hung.go_on()
    eventually(lambda: not gateway.predict(images).degraded)


def test_devices_wait_for_the_gateway_and_for_the_next_one(fleet, bundle):
    devices = [fleet.device("dev-1"), fleet.device("dev-2")]
    for device in devices:
        eventually(lambda device=device: device.says("looking for the gateway"))
    transport = fleet.transport()
    first = fleet.gateway(transport=transport)
    assert not first.predict(some_images(bundle)).degraded
    first.close()
    transport.close()
    second = fleet.gateway()
    assert not second.predict(some_images(bundle)).degraded
    assert sum("sub-model" in line for device in devices for line in device.lines) == 2


def test_a_load_over_the_limit_is_refused_with_the_reason(fleet, bundle):
    fleet.device("dev-1")
    small = fleet.device("dev-2", "--memory-mb", "0.001")
    gateway = fleet.gateway(ready=False)
    eventually(lambda: gateway.devices()[1].problem)
    assert gateway.devices()[1].problem.startswith("the planned sub-models need")
    eventually(lambda: small.says("dev-2: cannot load what the gateway plans: the planned sub-models need"))
    eventually(lambda: gateway.devices()[0].submodels)
    assert gateway.predict(some_images(bundle)).missing == (1,)
    assert small.end() == 0


def test_corrupted_cache_files_are_fetched_again(fleet, bundle, local):
    fleet.cache.mkdir()
    models = [submodel.model for submodel in bundle.manifest.submodels]
    for model in models:
        (fleet.cache / f"{model.sha256}.onnx").write_bytes(b"x" * model.bytes)
    fleet.device("dev-1"), fleet.device("dev-2")
    images = some_images(bundle)
    assert fleet.gateway().predict(images).logits.tobytes() == local.predict(images).logits.tobytes()
    assert sorted(path.read_bytes() for path in fleet.cache.iterdir()) == sorted(
        bundle.model_path(model).read_bytes() for model in models
    )


def test_malformed_messages_are_refused_and_the_process_lives_on(fleet, bundle):
    device, _ = fleet.device("dev-1"), fleet.device("dev-2")
    transport = fleet.transport()
    gateway = fleet.gateway(transport=transport)
    key = INFER.key(fleet="local", submodel="*", device="dev-1")
    good = (
        InferRequest(request="0" * 16, shape=(1, 3, 16, 16), bundle=bundle.digest, deadline_s=5.0)
        .model_dump_json()
        .encode()
    )
    encoded = InferRequest(
        request="0" * 16, shape=(1, 3, 16, 16), encoding="jpeg", encoded_bytes=9, bundle=bundle.digest, deadline_s=5.0
    )
    attacks = [
        encode(encoded, b"not JPEG!"),
        Packet(b"", b""),
        Packet(b"{", b""),
        Packet(good, b""),
        Packet(good, bytes(3 * 16 * 16 + 1)),
        Packet(good.replace(b"[1,3,16,16]", b"[1,3,16,1073741824]"), bytes(3 * 16 * 16)),
        Packet(good.replace(b"[1,3,16,16]", b"[2,3,16,16]"), bytes(3 * 16 * 16)),
        Packet(b" " * 100_000 + good, bytes(3 * 16 * 16)),
        Packet(good, bytes(20_000_000)),
    ]
    attacks += [Packet(good[:n], bytes(3 * 16 * 16)) for n in range(0, len(good), 9)]
    for attack in attacks:
        (reply,) = transport.ask(key, attack, deadline_s=30)
        assert isinstance(reply, Failure)
        assert type(reply.error) is WireError
    for topic in (INFO, LOAD):
        (reply,) = transport.ask(topic.key(fleet="local", device="dev-1"), Packet(b"nonsense"), deadline_s=30)
        assert type(reply.error) is WireError
    (reply,) = transport.ask(INFO.key(fleet="local", device="dev-1"), encode(InfoRequest()), deadline_s=30)
    assert isinstance(reply, Reply)
    assert not gateway.predict(some_images(bundle)).degraded
    assert device.process.poll() is None
    assert device.end() == 0
    assert not any("Traceback" in line for line in device.errors)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("state", ["waiting", "serving"])
def test_a_signal_ends_it_cleanly(fleet, bundle, number, state):
    devices = [fleet.device("dev-1"), fleet.device("dev-2")]
    if state == "serving":
        fleet.gateway()
    for device in devices:
        eventually(lambda device=device: device.says("looking for the gateway"))
    children = [child for device in devices for child in psutil.Process(device.pid).children(recursive=True)]
    assert [device.end(number) for device in devices] == [0, 0]
    assert [device.errors for device in devices] == [[], []]
    assert not any(child.is_running() for child in children)


def test_a_signal_ends_it_cleanly_in_mid_inference(fleet, tmp_path):
    fleet.bundle = write_tiny_bundle(tmp_path / "large", submodels=1, classes=2, size=224)
    device = fleet.device("dev-1")
    gateway = fleet.gateway()
    images = some_images(fleet.bundle, batch=100)
    stop = threading.Event()

    def work():
        while not stop.is_set():
            with contextlib.suppress(UnavailableError):
                gateway.predict(images)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    code = device.end()
    stop.set()
    for thread in threads:
        thread.join()
    assert (code, device.errors) == (0, [])


def test_the_last_device_leaving_is_told(fleet, bundle):
    one, two = fleet.device("dev-1"), fleet.device("dev-2")
    gateway = fleet.gateway()
    assert one.end() == two.end() == 0
    eventually(lambda: not any(device.alive for device in gateway.devices()))
    with pytest.raises(UnavailableError, match="no device answered"):
        gateway.predict(some_images(bundle))


def test_a_second_device_of_one_name_is_refused(fleet, bundle):
    first = fleet.device("dev-1")
    fleet.device("dev-2")
    gateway = fleet.gateway()
    second = fleet.device("dev-1")
    assert second.wait() == 2
    assert len(second.errors) == 1
    assert second.errors[0].startswith("edvit: a device named dev-1 is already running in fleet local")
    assert first.process.poll() is None
    assert not gateway.predict(some_images(bundle)).degraded


def run_device(*arguments):
    command = [*EDVIT, "device", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--name", "a/b"], "--name 'a/b'"),
        (["--name", "*"], "--name '*'"),
        (["--name", ""], "--name ''"),
        (["--name", "d", "--fleet", "a b"], "--fleet 'a b'"),
        (["--name", "d", "--connect", "127.0.0.1"], "write tcp/HOST:PORT"),
        (["--name", "d", "--connect", "tcp/host:99999"], "at most 65535"),
        (["--name", "d", "--insecure", "--listen", "http://x:1"], "write tcp/HOST:PORT"),
        (["--name", "d"], "device d needs keys"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_in_one_line(arguments, message, tmp_path):
    done = subprocess.run(
        [*EDVIT, "device", *arguments, "--cache", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
    assert done.stdout == ""


def test_a_taken_port_and_an_impossible_cache_are_refused(tmp_path):
    (tmp_path / "file").write_text("")
    endpoint = free_endpoint()
    host, port = endpoint.removeprefix("tcp/").split(":")
    with socket.create_server((host, int(port))):
        for arguments, message in (
            (["--listen", endpoint, "--connect", free_endpoint()], "in use"),
            (["--cache", str(tmp_path / "file" / "x"), "--connect", free_endpoint()], "--cache"),
        ):
            done = run_device("--name", "d", *arguments)
            assert done.returncode == 2, done.stderr
            assert done.stderr.count("\n") == 1
            assert message in done.stderr
