"""A new bundle for a running fleet, as a user deploys it: real processes, real Zenoh, real HTTP."""

from __future__ import annotations

import contextlib
import os
import queue
import shutil
import signal
import subprocess
import threading
import time
from types import SimpleNamespace

import pytest

from device_processes import process_fleet
from edvit.bundle import read_bundle
from edvit.runtime.deploy.transfer import body_of, head_of, size_of
from edvit.runtime.http.client import Client
from edvit.runtime.predictor import LocalPredictor
from fleet_in_memory import some_images
from keyed_fleet import keyed_fleet
from served_in_memory import served_in_memory
from serving import EDVIT, run, serving
from tiny_bundle import write_tiny_bundle
from waiting import eventually

pytestmark = pytest.mark.slow

LONG_S = 120.0
DEVICES = ("dev-1", "dev-2", "dev-3")
BALLAST_BYTES = 20_000_000
"""A device needs a moment to load so much."""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("deploys")
    return [
        write_tiny_bundle(root / name, submodels=3, classes=6, seed=seed, ballast_bytes=BALLAST_BYTES)
        for name, seed in (("old", 0), ("new", 50))
    ]


@pytest.fixture
def old(made, tmp_path):
    shutil.copytree(made[0].path, tmp_path / "served" / "bundle")
    return read_bundle(tmp_path / "served" / "bundle")


@pytest.fixture
def new(made):
    return made[1]


@pytest.fixture(scope="module")
def references(made):
    """By bundle's digest and absent sub-models: the probability of the first class of each image's answer."""
    images = some_images(made[0], batch=8)
    found = {}
    for bundle in made:
        local = LocalPredictor(bundle)
        for absent in ((), (1,)):
            found[bundle.digest, absent] = local.run(images, absent=absent).probabilities.max(axis=1)
    return found


class SteadyLoad:
    """Twenty requests a second, whatever becomes of the earlier ones; each answer with its image and its time."""

    def __init__(self, url, images):
        self.answers, self.errors, self.asked = [], [], 0
        self._url, self._images = url, images
        self._end = threading.Event()
        self._jobs = queue.SimpleQueue()
        self._threads = [threading.Thread(target=self._work) for _ in range(16)]
        self._clock = threading.Thread(target=self._tick)
        for thread in (*self._threads, self._clock):
            thread.start()

    def _tick(self):
        while not self._end.wait(0.05):
            self.asked += 1
            self._jobs.put(self.asked % len(self._images))
        for _ in self._threads:
            self._jobs.put(None)

    def _work(self):
        with Client(self._url, timeout_s=LONG_S) as client:
            while (which := self._jobs.get()) is not None:
                began = time.monotonic()
                try:
                    self.answers.append((began, which, client.predict_array(self._images[which])))
                except Exception as error:
                    self.errors.append(error)

    def more(self, count):
        """Wait for so many further answers to requests that begin from now on."""
        now = time.monotonic()
        eventually(lambda: sum(began > now for began, _, _ in list(self.answers)) >= count, LONG_S)

    def close(self):
        self._end.set()
        for thread in (self._clock, *self._threads):
            thread.join(LONG_S)
            assert not thread.is_alive(), "a request was lost"


def is_of(answer, which, references, digest):
    """Whether an answer is the one of that bundle in one process, without what it says is missing."""
    return abs(answer.probability - float(references[digest, answer.missing][which])) < 1e-6


def send(client, bundle):
    head = head_of(bundle)
    return client.deploy(body_of(bundle), len(head) + size_of(bundle.manifest), timeout_s=LONG_S)


def ends(client):
    """The deploy's last state."""
    return eventually(lambda: (found := client.deploy_state()).state != "under-way" and found, LONG_S)


def beside(bundle):
    return sorted(path.name for path in bundle.path.parent.iterdir())


def test_a_deploy_under_load_loses_no_request_and_mixes_no_answer(old, new, references):
    images = some_images(old, batch=8)
    with serving(old.path, "--local", "--deadline-s", "60") as served:
        with contextlib.closing(SteadyLoad(served.url, images)) as load:
            load.more(40)
            done = run("deploy", served.url, new.path, timeout=LONG_S)
            switched = time.monotonic()
            assert (done.returncode, done.stderr) == (0, "")
            load.more(60)
        assert load.errors == []
        assert len(load.answers) == load.asked
        for began, which, answer in load.answers:
            assert answer.missing == ()
            assert is_of(answer, which, references, new.digest) or (
                began < switched and is_of(answer, which, references, old.digest)
            )
        lines = done.stdout.splitlines()
        assert lines[0].startswith("sent: ")
        assert [line.partition(":")[0] for line in lines if not line.startswith("warm")] == [
            "sent",
            "verified",
            "switched",
            "done",
        ]
        assert "warm: 3 of 3 devices" in lines
        again = run("deploy", served.url, new.path)
        assert (again.returncode, again.stderr) == (0, "")
        assert again.stdout == f"the gateway serves this bundle already ({new.digest[:12]}): nothing to do\n"
        planned = new.manifest.submodel(0).peak_memory_bytes
        with Client(served.url) as client:
            eventually(lambda: {one.memory_bytes for one in client.fleet().devices} == {planned}, LONG_S)
    assert beside(old) == ["bundle", "bundle.previous"]
    with serving(old.path, "--local") as served, Client(served.url) as client:
        assert client.deploy_state().serving == new.digest


def test_a_device_that_is_killed_while_it_loads(old, new, references):
    images = some_images(old, batch=8)
    with serving(old.path, "--local", "--deadline-s", "60") as served, Client(served.url, timeout_s=LONG_S) as client:
        with contextlib.closing(SteadyLoad(served.url, images)) as load:
            load.more(20)
            send(client, new)
            served.devices["dev-2"].send_signal(signal.SIGKILL)
            last = ends(client)
            load.more(40)
        assert (last.state, last.serving) == ("failed", old.digest)
        assert "device dev-2 went away while it loaded" in last.error.message
        assert load.errors == []
        assert len(load.answers) == load.asked
        assert all(is_of(answer, which, references, old.digest) for _, which, answer in load.answers)
        assert load.answers[-1][2].missing == (1,)
        planned = old.manifest.submodel(0).peak_memory_bytes
        eventually(lambda: [client.fleet().devices[i].memory_bytes for i in (0, 2)] == [planned, planned], LONG_S)
    assert beside(old) == ["bundle"]


def test_a_device_that_is_stopped_while_it_loads(old, new, references):
    """The old bundle stays and no request is lost; once the device goes on it drops what it has loaded by then."""
    images = some_images(old, batch=8)
    with serving(old.path, "--local") as served, Client(served.url, timeout_s=LONG_S) as client:
        with contextlib.closing(SteadyLoad(served.url, images)) as load:
            load.more(60)  # so many that the deadline is learned
            send(client, new)
            served.devices["dev-2"].send_signal(signal.SIGSTOP)
            last = ends(client)
            assert (last.state, last.serving) == ("failed", old.digest)
            assert "device dev-2" in last.error.message
            load.more(40)
            served.devices["dev-2"].send_signal(signal.SIGCONT)
            planned = old.manifest.submodel(0).peak_memory_bytes
            eventually(lambda: {one.memory_bytes for one in client.fleet().devices} == {planned}, LONG_S)
            eventually(lambda: client.health().status == "ready", LONG_S)
            load.more(40)
        assert load.errors == []
        assert len(load.answers) == load.asked
        assert {answer.missing for _, _, answer in load.answers} <= {(), (1,)}
        assert all(is_of(answer, which, references, old.digest) for _, which, answer in load.answers)
    assert beside(old) == ["bundle"]


def test_a_gateway_that_is_killed_in_the_midst_comes_back_with_the_old_bundle(old, new, references, tmp_path):
    images = some_images(old, batch=8)
    with process_fleet(old, tmp_path / "cache") as fleet:
        devices = [fleet.device(name) for name in DEVICES]
        with serving(old.path, "--listen", fleet.endpoint) as served, Client(served.url) as client:
            eventually(lambda: client.health().status == "ready", LONG_S)
            devices[2].stop()  # so that the deploy cannot end before the gateway does
            send(client, new)
            eventually(lambda: "warm: 2 of 3 devices" in client.deploy_state().steps, LONG_S)
            served.process.kill()
            served.process.wait()
        devices[2].go_on()
        assert beside(old) == [".bundle-deploy", "bundle"]
        with serving(old.path, "--listen", fleet.endpoint) as served, Client(served.url) as client:
            assert beside(old) == ["bundle"]
            eventually(lambda: client.health().status == "ready", LONG_S)
            for which, image in enumerate(images):
                answer = client.predict_array(image)
                assert is_of(answer, which, references, old.digest)
            planned = old.manifest.submodel(0).peak_memory_bytes
            eventually(lambda: {one.memory_bytes for one in client.fleet().devices} == {planned}, LONG_S)


def test_too_little_memory_and_a_changed_file(old, new, tmp_path):
    need = old.manifest.submodel(0).peak_memory_bytes
    with process_fleet(old, tmp_path / "cache") as fleet:
        for name in DEVICES:
            fleet.device(name, *(["--memory-mb", 1.5 * need / 1e6] if name == "dev-2" else []))
        with serving(old.path, "--listen", fleet.endpoint) as served, Client(served.url) as client:
            eventually(lambda: client.health().status == "ready", LONG_S)
            done = run("deploy", served.url, new.path)
            assert (done.returncode, done.stdout) == (1, "")
            assert done.stderr.startswith(f"edvit: device dev-2 has no room for both bundles: it serves {need:,} bytes")
            assert done.stderr.count("\n") == 1
            changed = tmp_path / "changed"
            shutil.copytree(new.path, changed)
            with (changed / "submodel-1.onnx").open("r+b") as file:
                file.write(b"x")
            done = run("deploy", served.url, changed)
            assert done.returncode == 2
            assert "altered or damaged" in done.stderr
            assert client.deploy_state().serving == old.digest
            assert not client.predict_array(some_images(old)[0]).degraded
    assert beside(old) == ["bundle"]


def test_a_deploy_whose_command_is_killed_while_it_sends(old, new):
    """Its process is held in the midst of the body, and ended then."""
    with serving(old.path, "--local") as served, Client(served.url) as client:
        command = subprocess.Popen([*EDVIT, "deploy", served.url, str(new.path)], stdout=subprocess.PIPE)
        with command:
            eventually(lambda: ".bundle-deploy" in beside(old), LONG_S)
            command.kill()
        eventually(lambda: client.deploy_state().state != "under-way", LONG_S)
        if client.deploy_state().serving == old.digest:  # it was killed before the last byte had left
            assert beside(old) == ["bundle"]
        assert not client.predict_array(some_images(old)[0]).degraded


def test_a_deploy_needs_the_scope_operate(old, new, tmp_path):
    keys = tmp_path / "keys"
    assert run("keys", "init", "--keys", keys, "--host", "127.0.0.1").returncode == 0
    tokens = {}
    for scope in ("predict,watch", "operate"):
        made = run("keys", "token", scope.replace(",", "-"), "--scope", scope, "--keys", keys)
        assert made.returncode == 0, made.stderr
        tokens[scope] = next(word for word in made.stdout.split() if word.startswith("edvit_"))
    with serving(old.path, "--local", "--keys", keys) as served:
        for scope, code in (("predict,watch", 2), ("operate", 0)):
            environment = {**os.environ, "EDVIT_TOKEN": tokens[scope], "EDVIT_CA": str(keys / "ca.crt")}
            done = run("deploy", served.url, new.path, env=environment, timeout=LONG_S)
            assert done.returncode == code, done.stderr
        assert "switched" in done.stdout
    assert beside(old) == ["bundle", "bundle.previous"]


def test_a_deploy_to_devices_with_certificates(old, new, tmp_path):
    """The rules of the keys let through what a deploy says, and no more."""
    with keyed_fleet(tmp_path / "keys", old) as fleet:
        keys = {name: fleet.join(name) for name in DEVICES}
        transport = fleet.transport()
        with served_in_memory(SimpleNamespace(node=lambda: transport), old) as served:
            agents = {name: fleet.device(name, keys[name]) for name in DEVICES}
            served.gateway.wait_ready(LONG_S)
            with Client(served.url, timeout_s=LONG_S) as client:
                send(client, new)
                assert ends(client).state == "done"
            images = some_images(new)
            prediction = served.gateway.predict(images)
            assert prediction.missing == ()
            assert prediction.logits.tobytes() == LocalPredictor(new).predict(images).logits.tobytes()
            planned = new.manifest.submodel(0).peak_memory_bytes
            eventually(lambda: {one.memory_bytes for one in served.gateway.devices()} == {planned}, LONG_S)
            # One that starts without a cache finds the files, though what served the old ones has closed.
            agents["dev-2"].close()
            eventually(lambda: served.gateway.devices()[1].state == "offline", LONG_S)
            shutil.rmtree(tmp_path / "keys" / "dev-2-cache")
            fleet.device("dev-2", keys["dev-2"])
            eventually(lambda: not served.gateway.predict(images).degraded, LONG_S)
