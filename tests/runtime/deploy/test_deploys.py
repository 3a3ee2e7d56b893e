"""Deploys over HTTP to a gateway whose devices are in this process."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import socket
import threading

import httpx
import numpy as np
import psutil
import pytest

from edvit.bundle import MANIFEST, read_bundle
from edvit.cli.deploy import follow
from edvit.errors import (
    BundleError,
    DeadlineError,
    DeployError,
    EdvitError,
    MemoryLimitError,
    TooLargeError,
    UnsupportedMediaError,
)
from edvit.fleet import Device, Fleet
from edvit.runtime.deploy import rollout, transfer
from edvit.runtime.deploy.transfer import body_of, head_of, size_of
from edvit.runtime.device.model_cache import ModelCache
from edvit.runtime.engine.submodel import SubModelEngine
from edvit.runtime.http.body import BUNDLE
from edvit.runtime.http.client import Client
from edvit.runtime.predictor import LocalPredictor
from fleet_in_memory import memory_fleet, some_images
from served_in_memory import served_in_memory
from tiny_bundle import write_tiny_bundle
from waiting import eventually

DEVICES = ("dev-1", "dev-2", "dev-3")


def fleet_of(*names, **options):
    return Fleet(name="local", devices=tuple(Device.model_validate({"name": name, **options}) for name in names))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two bundles of one fleet: sub-models 0 and 1 on dev-1 and dev-2, dev-3 is spare."""
    root = tmp_path_factory.mktemp("made")
    fleet = fleet_of(*DEVICES)
    old = write_tiny_bundle(root / "old", classes=4, fleet=fleet)
    new = write_tiny_bundle(root / "new", classes=5, fleet=fleet, seed=7)
    return old, new


@pytest.fixture
def old(made, tmp_path):
    shutil.copytree(made[0].path, tmp_path / "served" / "bundle")
    return read_bundle(tmp_path / "served" / "bundle")


@pytest.fixture
def new(made):
    return made[1]


@pytest.fixture
def fleet(old, tmp_path):
    with memory_fleet(old, tmp_path / "cache") as fleet:
        yield fleet


@pytest.fixture
def served(fleet, old):
    with served_in_memory(fleet, old) as served:
        yield served


@pytest.fixture
def devices(fleet, served):
    agents = {name: fleet.device(name) for name in DEVICES}
    ready(served)
    return agents


def ready(served):
    """Every device of the fleet is there, spare ones included."""
    eventually(lambda: all(device.state == "ready" for device in served.gateway.devices()))


def send(client, bundle, *, timeout_s=60.0):
    head = head_of(bundle)
    return client.deploy(body_of(bundle), len(head) + size_of(bundle.manifest), timeout_s=timeout_s)


def deploy(served, bundle, **options):
    """Send a bundle and wait for the end; the steps that were told. Raises what it failed with."""
    with Client(served.url, timeout_s=60.0) as client:
        follow(client, send(client, bundle, **options), bundle)
        return client.deploy_state().steps


def held(agent):
    return {(one.bundle, one.id) for one in agent.info().submodels}


def serves(served, bundle):
    """Whether it answers as the bundle does in one process, at the gateway and over HTTP."""
    images = some_images(bundle)
    expected = LocalPredictor(bundle).predict(images)
    with Client(served.url, timeout_s=60.0) as client:
        answers = client.predict_batch(images)
    assert not answers.degraded
    assert [answer.label for answer in answers.predictions] == list(expected.labels)
    prediction = served.gateway.predict(images)
    return prediction.missing == () and prediction.logits.tobytes() == expected.logits.tobytes()


def beside(bundle):
    return sorted(path.name for path in bundle.path.parent.iterdir())


# --- the new bundle is served ------------------------------------------------------------------------------


def test_a_new_bundle_takes_the_place_of_the_old_one(served, devices, old, new):
    assert serves(served, old)
    steps = deploy(served, new)
    assert [step.partition(":")[0] for step in steps if "0 of" not in step and "1 of" not in step] == [
        "verified",
        "classes",
        "warm",
        "switched",
        "done",
    ]
    assert "classes: new class-4" in steps
    assert "warm: 2 of 2 devices" in steps
    assert serves(served, new)
    eventually(lambda: held(devices["dev-1"]) == {(new.digest, 0)} and held(devices["dev-2"]) == {(new.digest, 1)})
    assert beside(old) == ["bundle", "bundle.previous"]
    assert read_bundle(old.path).digest == new.digest
    assert read_bundle(old.path.with_name("bundle.previous")).digest == old.digest


def test_and_back_again(served, devices, old, new, made):
    deploy(served, new)
    deploy(served, made[0])
    assert serves(served, made[0])
    assert beside(old) == ["bundle", "bundle.previous"]
    assert read_bundle(old.path.with_name("bundle.previous")).digest == new.digest
    eventually(lambda: held(devices["dev-1"]) == {(old.digest, 0)})


def test_the_bundle_that_is_served_is_not_deployed_again(served, devices, made):
    with Client(served.url) as client:
        answer = send(client, made[0])
        assert (answer.state, answer.id, answer.serving) == ("none", None, made[0].digest)
        assert client.deploy_state().state == "none"


def test_requests_under_way_end_on_the_bundle_that_they_began_with(served, devices, old, new, monkeypatch):
    """One is held on the device until the gateway has switched."""
    began, let_go, run = threading.Event(), threading.Event(), SubModelEngine.run_in_chunks
    slow = next(iter(devices["dev-1"]._held.values())).engine

    def held_up(engine, images, **how):
        if engine is slow and len(images) == 3:
            began.set()
            let_go.wait(30)
        return run(engine, images, **how)

    monkeypatch.setattr(SubModelEngine, "run_in_chunks", held_up)
    images = some_images(old, batch=3)
    expected = list(LocalPredictor(old).predict(images).labels)
    answers = []

    def ask():
        with Client(served.url, timeout_s=60.0) as client:
            answers.append(client.predict_batch(images))

    switch, first = served.deploys.switch, served.deploys.switch.current
    turn_to = switch.turn_to
    asking = threading.Thread(target=ask)

    def turned(serving):
        asking.start()
        assert began.wait(30)
        turn_to(serving)
        let_go.set()

    monkeypatch.setattr(switch, "turn_to", turned)
    deploy(served, new)
    asking.join(30)
    assert [answer.label for answer in answers[0].predictions] == expected
    assert not answers[0].degraded
    assert switch.current is not first
    assert serves(served, new)


def test_another_size_of_input(served, devices, old, tmp_path):
    larger = write_tiny_bundle(tmp_path / "larger", classes=4, size=24, fleet=fleet_of(*DEVICES), seed=3)
    steps = deploy(served, larger)
    assert "input: [3, 24, 24] in place of [3, 16, 16]" in steps
    assert serves(served, larger)


def test_another_placement(served, devices, old, tmp_path):
    """What was a spare device holds a sub-model now, and the other way round."""
    turned = write_tiny_bundle(tmp_path / "turned", classes=4, fleet=fleet_of("dev-3", "dev-2", "dev-1"), seed=3)
    deploy(served, turned)
    assert serves(served, turned)
    eventually(lambda: held(devices["dev-3"]) == {(turned.digest, 0)} and held(devices["dev-1"]) == set())


def test_a_device_that_the_new_fleet_lacks_drops_everything(served, devices, old, tmp_path):
    fewer = write_tiny_bundle(tmp_path / "fewer", classes=4, fleet=fleet_of("dev-2", "dev-3"), seed=3)
    deploy(served, fewer)
    assert serves(served, fewer)
    eventually(lambda: held(devices["dev-1"]) == set())


def test_a_device_that_is_away_is_not_waited_for_and_loads_when_it_is_back(fleet, served, old, new):
    fleet.device("dev-1")
    eventually(lambda: served.gateway.devices()[0].state == "ready")
    steps = deploy(served, new)
    assert "away: dev-2, dev-3; not waited for, will load the new sub-models when back" in steps
    assert "warm: 1 of 1 device" in steps
    agent = fleet.device("dev-2")
    eventually(lambda: held(agent) == {(new.digest, 1)})
    served.gateway.wait_ready(30)
    assert serves(served, new)


def test_what_is_away_goes_to_a_device_with_room_before_the_switch(fleet, served, old, new):
    one, spare = fleet.device("dev-1"), fleet.device("dev-3")
    eventually(lambda: [device.state for device in served.gateway.devices()] == ["ready", "offline", "ready"])
    deploy(served, new)
    assert serves(served, new)
    eventually(lambda: held(one) | held(spare) == {(new.digest, 0), (new.digest, 1)})


def test_deploys_leave_no_thread_and_no_process(served, devices, old, new, made):
    def left():
        return threading.active_count(), len(psutil.Process().children(recursive=True)), psutil.Process().num_fds()

    deploy(served, new)
    deploy(served, made[0])
    before = left()
    deploy(served, new)
    deploy(served, made[0])
    eventually(lambda: all(now <= then + 2 for now, then in zip(left(), before, strict=True)))


# --- the old bundle stays ----------------------------------------------------------------------------------


def test_a_device_without_room_for_both(fleet, served, old, new):
    need = old.manifest.submodel(0).peak_memory_bytes
    agents = [fleet.device("dev-1", memory_limit_bytes=2 * need - 1000), fleet.device("dev-2")]
    served.gateway.wait_ready(30)
    eventually(lambda: served.gateway.devices()[0].memory_limit_bytes == 2 * need - 1000)
    with pytest.raises(MemoryLimitError) as refused:
        deploy(served, new)
    assert f"device dev-1 has no room for both bundles: it serves {need:,} bytes" in str(refused.value)
    assert f"its limit is {2 * need - 1000:,} bytes; raise the limit" in str(refused.value)
    stays(served, old, agents)


def stays(served, old, agents):
    """The old bundle is served, and nothing is left of the other."""
    assert serves(served, old)
    assert beside(old) in (["bundle"], ["bundle", "bundle.previous"])
    for agent in agents:
        eventually(lambda agent=agent: {bundle for bundle, _ in held(agent)} <= {old.digest})


def test_a_device_that_refuses_by_itself(served, devices, old, new, monkeypatch):
    """The gateway may not know all of its limit."""
    monkeypatch.setattr("edvit.runtime.deploy.deploys.check_fits", lambda *args: None)
    devices["dev-2"]._memory_limit_bytes = old.manifest.submodel(1).peak_memory_bytes + 100
    with pytest.raises(MemoryLimitError, match=r"device dev-2: the planned sub-models need .* of the other bundle"):
        deploy(served, new)
    stays(served, old, devices.values())


def held_up(monkeypatch, submodel):
    """Devices that load it wait; whether one has begun to, and what lets them go on."""
    began, let_go = threading.Event(), threading.Event()
    get = ModelCache.get

    def slow(self, sha256, size, fetch):
        if sha256 == submodel.model.sha256:
            began.set()
            let_go.wait(30)
        return get(self, sha256, size, fetch)

    monkeypatch.setattr(ModelCache, "get", slow)
    return began, let_go


def test_a_device_that_dies_while_it_loads(served, devices, old, new, monkeypatch):
    began, let_go = held_up(monkeypatch, new.manifest.submodel(1))
    killer = threading.Thread(target=lambda: (began.wait(30), devices["dev-2"].node.close()))
    killer.start()
    with pytest.raises(DeployError, match=r"device dev-2 went away while it loaded .*; the old bundle stays"):
        deploy(served, new)
    killer.join(30)
    let_go.set()
    assert served.gateway.bundle.digest == old.digest
    assert served.gateway.predict(some_images(old)).missing == (1,)
    eventually(lambda: held(devices["dev-1"]) == {(old.digest, 0)})
    assert beside(old) == ["bundle"]


def test_a_device_that_cannot_load(served, devices, old, new, monkeypatch):
    monkeypatch.setattr(rollout, "PATIENCE_S", 0.3)
    monkeypatch.setattr(ModelCache, "_download", lambda *args: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(DeployError, match=r"device dev-.: the device cannot store a model file"):
        deploy(served, new)
    stays(served, old, devices.values())


def test_devices_that_take_too_long(served, devices, old, new, monkeypatch):
    get, let_go = ModelCache.get, threading.Event()
    monkeypatch.setattr(ModelCache, "get", lambda *args: (let_go.wait(30), get(*args))[1])
    with pytest.raises(DeadlineError, match=r"devices have not loaded the new bundle in time: dev-1, sub-model 0; dev"):
        deploy(served, new, timeout_s=0.3)
    let_go.set()
    stays(served, old, devices.values())
    deploy(served, new)
    assert serves(served, new)


def test_a_fusion_that_cannot_be_used(served, devices, old, tmp_path, new):
    broken = tmp_path / "broken"
    shutil.copytree(new.path, broken)
    text = (broken / MANIFEST).read_text()
    (broken / "fusion.onnx").write_bytes(b"nothing")
    model = new.manifest.fusion.model
    text = text.replace(model.sha256, hashlib.sha256(b"nothing").hexdigest()).replace(
        f'"bytes": {model.bytes}', '"bytes": 7'
    )
    (broken / MANIFEST).write_text(text)
    with pytest.raises(BundleError, match="fusion"):
        deploy(served, read_bundle(broken))
    stays(served, old, devices.values())


def test_the_gateway_ends_in_the_midst(fleet, old, new, monkeypatch):
    began, let_go = held_up(monkeypatch, new.manifest.submodel(1))
    agents = [fleet.device("dev-1"), fleet.device("dev-2")]
    with contextlib.ExitStack() as stack:
        served = stack.enter_context(served_in_memory(fleet, old))
        served.gateway.wait_ready(30)
        with Client(served.url) as client:
            send(client, new)
        assert began.wait(30)
    let_go.set()
    assert beside(old) == ["bundle"]
    with served_in_memory(fleet, old) as served:
        served.gateway.wait_ready(30)
        stays(served, old, agents)


def test_another_fleet_and_unknown_devices(served, devices, old, tmp_path):
    other = write_tiny_bundle(tmp_path / "other", fleet=Fleet(name="shelf", devices=fleet_of(*DEVICES).devices))
    with pytest.raises(BundleError, match="built for fleet shelf, and the gateway serves fleet local"):
        deploy(served, other)
    strange = write_tiny_bundle(tmp_path / "strange", fleet=fleet_of("dev-1", "pi-9"))
    with pytest.raises(
        BundleError, match="the bundle's plan names pi-9, and the gateway's fleet has dev-1, dev-2, dev-3"
    ):
        deploy(served, strange)
    stays(served, old, devices.values())


def test_another_deploy_is_under_way(served, devices, old, new, monkeypatch):
    get, let_go = ModelCache.get, threading.Event()
    monkeypatch.setattr(ModelCache, "get", lambda *args: (let_go.wait(30), get(*args))[1])
    with Client(served.url) as first, Client(served.url) as second:
        begun = send(first, new)
        with pytest.raises(DeployError, match="another deploy is under way"):
            send(second, new)
        assert second.deploy_state().id == begun.id
        let_go.set()
        follow(first, begun, new)
    assert serves(served, new)


def test_a_standby_gateway_takes_no_bundle_and_sees_the_switch(fleet, served, devices, *, old, new, monkeypatch):
    monkeypatch.setattr("edvit.runtime.gateway.lease.ASK_AGAIN_S", 0.1)
    threading.Event().wait(0.1)
    with served_in_memory(fleet, old) as standby:
        eventually(lambda: standby.lease.in_charge() is not None)
        standby.gateway.wait_ready(30)
        with pytest.raises(DeployError, match="is in charge of the fleet: deploy to that one"):
            deploy(standby, new)
        deploy(served, new)
        eventually(lambda: _refused(standby.gateway.check_lease))
        assert serves(served, new)
        served.gateway.check_lease()


def _refused(check):
    try:
        check()
    except EdvitError as error:
        return "another bundle" in str(error)
    return False


# --- what is sent ------------------------------------------------------------------------------------------


def post(served, content, media_type=BUNDLE, query=""):
    return httpx.post(
        f"{served.url}/deploy{query}",
        content=content,
        headers={"content-type": media_type},
        trust_env=False,
        timeout=60,
    )


def whole(bundle):
    return b"".join(body_of(bundle))


def changed(bundle, where, byte=b"x"):
    data = whole(bundle)
    return data[:where] + byte + data[where + 1 :]


@pytest.mark.parametrize(
    ("make", "code", "text"),
    [
        (lambda new: changed(new, -20), "bad-bundle", "altered or damaged"),
        (lambda new: whole(new)[:-1], "bad-bundle", "another length"),
        (lambda new: whole(new) + b"x", "bad-bundle", "another length"),
        (lambda new: iter([whole(new)[:-1]]), "bad-bundle", "ends before"),
        (lambda new: iter([whole(new), b"x"]), "bad-bundle", "longer"),
        (lambda new: b"", "bad-bundle", "ends before"),
        (lambda new: b"12345678", "too-large", "manifest is over"),
        (lambda new: (5).to_bytes(8, "big") + b"{}{}{", "bad-bundle", "not valid JSON"),
        (lambda new: (2).to_bytes(8, "big") + b"[]", "bad-bundle", "not the manifest"),
    ],
    ids=range(9),
)
def test_a_body_that_is_no_bundle(served, devices, *, old, new, make, code, text):
    answer = post(served, make(new))
    assert answer.status_code in (400, 413)
    assert answer.json()["error"]["code"] == code
    assert text in answer.json()["error"]["message"]
    stays(served, old, devices.values())


@pytest.mark.parametrize("name", ["../../evil.onnx", "/tmp/evil.onnx", "..\\\\evil.onnx", "manifest.json", "a/../../b"])
def test_a_manifest_that_names_another_place(served, devices, old, new, name):
    text = (new.path / MANIFEST).read_text().replace('"submodel-0.onnx"', f'"{name}"').encode()
    files = whole(new)[len(head_of(new)) :]
    answer = post(served, len(text).to_bytes(8, "big") + text + files)
    assert answer.json()["error"]["code"] in ("bad-bundle", "deploy")
    assert not list(old.path.parent.parent.rglob("*evil*"))
    stays(served, old, devices.values())


def test_another_type_of_body(served, new):
    for media_type in ("application/octet-stream", "multipart/form-data", "text/plain"):
        answer = post(served, whole(new), media_type)
        assert answer.json()["error"]["code"] == UnsupportedMediaError.code


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "soon", "1e9"])
def test_an_impossible_time(served, new, seconds):
    assert post(served, whole(new), query=f"?timeout_s={seconds}").json()["error"]["code"] == "bad-config"


def test_a_bundle_that_is_too_large(served, new, monkeypatch):
    monkeypatch.setattr(transfer, "MAX_BUNDLE_BYTES", 1000)
    with pytest.raises(TooLargeError, match="the bundle is over 1,000 bytes"):
        deploy(served, new)


def test_a_full_disk(served, devices, old, new, monkeypatch):
    usage = shutil.disk_usage(old.path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10))
    with pytest.raises(DeployError, match=r"the gateway's disk has room for 0\.0 MB"):
        deploy(served, new)
    stays(served, old, devices.values())


def test_a_client_that_goes_away_leaves_nothing(served, devices, old, new):
    port = httpx.URL(served.url).port
    data = whole(new)
    head = f"POST /deploy HTTP/1.1\r\nhost: x\r\ncontent-type: {BUNDLE}\r\ncontent-length: {len(data)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(head.encode() + data[:-10])
        eventually(lambda: beside(old) == [".bundle-deploy", "bundle"])
        with Client(served.url) as client:
            assert client.deploy_state().state == "under-way"
    eventually(lambda: beside(old) == ["bundle"])
    deploy(served, new)
    assert serves(served, new)


def test_a_client_that_stops_sending_is_given_up(served, devices, old, new, monkeypatch):
    monkeypatch.setattr(transfer, "IDLE_S", 0.2)
    port = httpx.URL(served.url).port
    data = whole(new)
    head = f"POST /deploy HTTP/1.1\r\nhost: x\r\ncontent-type: {BUNDLE}\r\ncontent-length: {len(data)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(head.encode() + data[:-10])
        assert b"408" in connection.recv(100)
    assert beside(old) == ["bundle"]


def test_a_client_that_dribbles_its_manifest_holds_up_no_other_deploy(served, devices, new, monkeypatch):
    """It sends a byte more often than it may be idle."""
    monkeypatch.setattr(transfer, "BASE_S", 0.5)
    port = httpx.URL(served.url).port
    data = whole(new)
    head = f"POST /deploy HTTP/1.1\r\nhost: x\r\ncontent-type: {BUNDLE}\r\ncontent-length: {len(data)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=0.05) as connection:
        connection.sendall(head.encode())
        said = b""
        for i in range(400):
            connection.sendall(data[i : i + 1])
            with contextlib.suppress(TimeoutError):
                said += connection.recv(1000)
            if said:
                break
    assert b"408" in said


def test_answers_never_mix_two_bundles_under_load(served, devices, old, new):
    """Every answer is the one of the old or of the new bundle; after the switch of the new one alone."""
    images = some_images(old, batch=1)
    scores = [float(LocalPredictor(one).predict(images).probabilities.max()) for one in (old, new)]
    assert not np.isclose(*scores, atol=1e-3)
    answers, errors, end = [], [], threading.Event()

    def ask():
        with Client(served.url, timeout_s=60.0) as client:
            while not end.is_set():
                try:
                    answers.append(client.predict_array(images[0]))
                except Exception as error:
                    errors.append(error)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    eventually(lambda: len(answers) > 20)
    deploy(served, new)
    count = len(answers)
    eventually(lambda: len(answers) > count + 20)
    end.set()
    for thread in threads:
        thread.join(30)
    assert errors == []
    assert not any(answer.degraded for answer in answers)
    which = [[abs(answer.probability - score) < 1e-6 for score in scores] for answer in answers]
    assert all(any(one) for one in which)
    assert all(one[1] for one in which[count + len(threads) :])
