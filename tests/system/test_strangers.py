"""Strangers on the network of a fleet with keys, over TLS on loopback: each is refused, and nothing else changes."""

from __future__ import annotations

import socket
import threading
from datetime import datetime, timezone

import pytest
import zenoh

from edvit.runtime.keys import authority
from edvit.runtime.predictor import LocalPredictor
from edvit.runtime.wire.header import encode
from edvit.runtime.wire.messages import BlobRequest, InfoRequest, LoadRequest
from edvit.runtime.wire.mutual_tls import MutualTls
from edvit.runtime.wire.packet import Packet
from edvit.runtime.wire.topics import ALIVE, ANY, BLOB, GATEWAY_ALIVE, INFER, INFO, LOAD
from edvit.runtime.wire.transport import Reply
from fleet_in_memory import some_images
from keyed_fleet import keyed_fleet
from tiny_bundle import write_tiny_bundle
from waiting import eventually

SHORT_S = 1.0
"""A deadline of questions that nobody may answer."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_tiny_bundle(tmp_path_factory.mktemp("strangers") / "bundle", submodels=2, classes=4)


@pytest.fixture
def fleet(bundle, tmp_path):
    with keyed_fleet(tmp_path, bundle) as fleet:
        yield fleet


@pytest.fixture
def running(fleet):
    """The fleet with its gateway and two devices; `check()` asserts that its answers are those of one process."""
    members = [(name, fleet.join(name)) for name in ("dev-1", "dev-2")]
    fleet.spare = fleet.join("dev-3")
    fleet.transport_ = fleet.transport()
    gateway = fleet.gateway(fleet.transport_)
    fleet.agents = [fleet.device(name, tls) for name, tls in members]
    gateway.wait_ready(60)
    images = some_images(fleet.bundle)
    expected = LocalPredictor(fleet.bundle).predict(images).logits.tobytes()

    def check():
        answer = gateway.predict(images)
        assert not answer.degraded
        assert answer.logits.tobytes() == expected

    fleet.check = check
    fleet.running = gateway
    check()
    return fleet


def refused(fleet, *arguments, **settings):
    with pytest.raises(zenoh.ZError, match="Unable to connect"):
        fleet.knock(*arguments, **settings)


def linked(node, fleet):
    """Whether the gateway's files reach a session, which is what every member may ask for."""
    digest = fleet.bundle.manifest.submodels[0].model.sha256
    packet = encode(BlobRequest(offset=0, length=10))
    replies = node.ask(BLOB.key(fleet="local", sha256=digest), packet, deadline_s=SHORT_S)
    return any(isinstance(reply, Reply) for reply in replies)


def test_a_member_sees_that_there_is_a_gateway(running):
    seen = []
    node = running.leaf(running.spare)
    node.watch(GATEWAY_ALIVE.key(fleet="local", instance=ANY), lambda key, alive: seen.append((key, alive)))
    eventually(lambda: [alive for _, alive in seen] == [True])


# --- who has no key, or not the right one ------------------------------------------------------------------


def test_one_without_a_certificate_is_refused_and_logged(running, capfd):
    refused(running, None)
    assert "peer sent no certificates" in capfd.readouterr().out
    running.check()


def test_one_without_tls_is_refused(running):
    refused(running, None, endpoint=running.endpoint.replace("tls/", "tcp/"))
    running.check()


def test_a_certificate_of_another_authority_is_refused_and_logged(running, tmp_path, capfd):
    with keyed_fleet(tmp_path / "other") as other:
        refused(running, other.join("dev-1"))
    assert "invalid peer certificate" in capfd.readouterr().out
    running.check()


def test_an_expired_certificate_is_refused_and_logged(running, capfd):
    refused(running, running.expired("dev-9"))
    assert "certificate expired" in capfd.readouterr().out
    running.check()


@pytest.mark.slow
def test_a_link_ends_when_its_certificate_expires(fleet):
    member = fleet.join("dev-1", now=datetime.now(timezone.utc), days=60 / 86_400)
    fleet.gateway(fleet.transport())
    leaf = fleet.leaf(member)
    eventually(lambda: linked(leaf, fleet))
    eventually(lambda: not linked(leaf, fleet), 240)


def test_the_gateways_own_key_is_no_devices(running):
    refused(running, running.gateway_tls())
    running.check()


@pytest.mark.parametrize("left", [("dev-2",), ()], ids=["others are members", "nobody is"])
def test_a_revoked_certificate_opens_nothing_and_is_logged(fleet, left, capfd):
    stolen = fleet.join("dev-1")
    others = {name: fleet.join(name) for name in left}
    authority.revoke(fleet.keys, "dev-1")
    fleet.gateway(fleet.transport())
    agents = [fleet.device(name, tls) for name, tls in others.items()]
    assert not linked(fleet.leaf(stolen), fleet)
    eventually(lambda: "did not match any configured ACL subject" in capfd.readouterr().out)
    for agent in agents:
        eventually(lambda agent=agent: agent.info().submodels)


def test_a_new_certificate_of_a_device_ends_the_one_that_was_stolen(fleet):
    stolen = fleet.join("dev-1")
    stolen = MutualTls(
        stolen.authority,
        *(path.rename(path.with_suffix(f"{path.suffix}.stolen")) for path in (stolen.certificate, stolen.key)),
    )
    current = fleet.join("dev-1")
    fleet.gateway(fleet.transport())
    member = fleet.leaf(current)
    eventually(lambda: linked(member, fleet))
    assert not linked(fleet.leaf(stolen), fleet)


# --- a member that does what it may not --------------------------------------------------------------------


def test_a_device_neither_answers_for_another_nor_sees_its_images(running):
    asked = []
    thief = running.leaf(running.spare)
    for key in (INFER.key(fleet="local", submodel=ANY, device="dev-1"), "edvit/local/infer/**", "**"):
        thief.serve(key, lambda request: asked.append(request.key) or [])
    eventually(lambda: linked(thief, running))
    for _ in range(5):
        running.check()
    assert not [key for key in asked if not key.startswith("edvit/local/blobs/")]  # that was its own question


def test_a_device_does_not_pass_for_another(running):
    """Neither as a second process of that name, nor as one in its absence."""
    thief = running.leaf(running.spare)
    eventually(lambda: linked(thief, running))
    seen = set()
    running.transport_.watch(ALIVE.key(fleet="local", device=ANY, instance=ANY), lambda key, alive: seen.add(key))
    thief.announce(ALIVE.key(fleet="local", device="dev-1", instance="f" * 16))
    thief.announce(ALIVE.key(fleet="local", device="dev-7", instance="f" * 16))
    own = ALIVE.key(fleet="local", device="dev-3", instance="f" * 16)
    thief.announce(own)
    eventually(lambda: own in seen)  # what was announced before it would be here, too
    assert {ALIVE.parts(key)["device"] for key in seen} == {"dev-1", "dev-2", "dev-3"}
    assert not any("dev-1" in key and "f" * 16 in key for key in seen)
    running.check()


def test_a_device_asks_no_other_device_for_anything(running):
    thief = running.leaf(running.spare)
    eventually(lambda: linked(thief, running))
    victim = running.agents[0]
    before = victim.info()
    load = LoadRequest(
        gateway="f" * 16,
        gateway_host="thief",
        instance=victim.instance,
        bundle="0" * 64,
        submodels=(),
        memory_limit_bytes=None,
        deadline_s=SHORT_S,
    )
    for key, packet in (
        (LOAD.key(fleet="local", device="dev-1"), encode(load)),
        (INFO.key(fleet="local", device="dev-1"), encode(InfoRequest())),
        (INFER.key(fleet="local", submodel=ANY, device="dev-1"), Packet(b"{}")),
        ("edvit/**", Packet(b"{}")),
    ):
        assert list(thief.ask(key, packet, deadline_s=SHORT_S)) == []
    assert victim.info() == before
    running.check()


def test_a_device_that_is_asked_cannot_answer_under_another_name(fleet):
    """A reply under the key of dev-1 to a question that reached dev-3 is dropped on the way."""
    thief = fleet.leaf(fleet.join("dev-3"))
    fleet.join("dev-1")
    transport = fleet.transport()
    own, other = (INFER.key(fleet="local", submodel="0", device=name) for name in ("dev-3", "dev-1"))
    thief.serve(
        INFER.key(fleet="local", submodel=ANY, device="dev-3"),
        lambda request: [Reply(key, Packet(b"{}")) for key in (other, own)],
    )
    asked = INFER.key(fleet="local", submodel=ANY, device="dev-3")
    replies = eventually(lambda: list(transport.ask(asked, Packet(b"{}"), deadline_s=SHORT_S)))
    assert {reply.key for reply in replies if isinstance(reply, Reply)} <= {own}


# --- somebody in the gateway's place -----------------------------------------------------------------------


def test_a_device_does_not_pass_for_the_gateway(fleet):
    """Its certificate is good for clients alone."""
    member, thief = fleet.join("dev-1"), fleet.join("dev-2")
    rules = fleet.gateway_tls().access
    fleet.transport(MutualTls(thief.authority, thief.certificate, thief.key, rules))
    refused(fleet, member)


def test_the_gateway_of_another_authority_is_refused(fleet, tmp_path):
    member = fleet.join("dev-1")
    with keyed_fleet(tmp_path / "other") as other:
        other.transport(endpoint=fleet.endpoint)
        refused(fleet, member)


def test_a_server_at_an_address_that_the_gateways_certificate_does_not_name_is_refused(fleet):
    """Zenoh trusts the web's authorities beside ours: a device looks at the name, or any web server would do."""
    member = fleet.join("dev-1")
    endpoint = f"tls/localhost:{fleet.endpoint.rpartition(':')[2]}"
    fleet.gateway(fleet.transport())
    assert not linked(fleet.leaf(member, endpoint), fleet)
    named = fleet.leaf(member)
    eventually(lambda: linked(named, fleet))


# --- what was recorded, what was changed -------------------------------------------------------------------


class Recorder:
    """A listener between a device and the gateway that keeps what the device sends."""

    def __init__(self, port):
        self._to = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.sent = bytearray()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                device, _ = self._listener.accept()
            except OSError:
                return
            gateway = socket.create_connection(self._to)
            threading.Thread(target=self._pass, args=(device, gateway, self.sent), daemon=True).start()
            threading.Thread(target=self._pass, args=(gateway, device, None), daemon=True).start()

    def _pass(self, source, target, kept):
        with source, target:
            try:
                while data := source.recv(65536):
                    if kept is not None:
                        kept += data
                    target.sendall(data)
            except OSError:
                pass

    def close(self):
        self._listener.close()


def test_recorded_replies_played_again_change_nothing_and_show_no_image(fleet):
    port = int(fleet.endpoint.rpartition(":")[2])
    recorder = fleet.closing(Recorder(port))
    member, between = fleet.join("dev-1"), f"tls/127.0.0.1:{recorder.port}"
    transport = fleet.transport()
    key = INFER.key(fleet="local", submodel=ANY, device="dev-1")
    secret = b"an image that nobody else may see " * 100
    device = fleet.leaf(member, between)
    device.serve(key, lambda request: [Reply(request.key, Packet(b"{}", secret))])
    (reply,) = eventually(lambda: list(transport.ask(key, Packet(b"{}", secret), deadline_s=SHORT_S)))
    assert reply.packet.payload == secret
    assert secret[:20] not in bytes(recorder.sent)
    with socket.create_connection(("127.0.0.1", port), timeout=30) as again:
        again.sendall(bytes(recorder.sent))
        received = bytearray()
        try:
            while data := again.recv(65536):
                received += data
        except ConnectionResetError:
            pass
    assert secret[:20] not in bytes(received)
    assert len(list(transport.ask(key, Packet(b"{}"), deadline_s=SHORT_S))) == 1


def test_a_changed_model_is_not_loaded(fleet, tmp_path):
    fleet.bundle = write_tiny_bundle(tmp_path / "changed", submodels=2, classes=4)
    member = fleet.join("dev-1")
    gateway = fleet.gateway(fleet.transport())
    model = fleet.bundle.model_path(fleet.bundle.manifest.submodels[0].model)
    data = bytearray(model.read_bytes())
    data[len(data) // 2] ^= 1
    model.write_bytes(data)
    victim = fleet.device("dev-1", member)
    eventually(lambda: "arrived with another digest" in (gateway.devices()[0].problem or ""), 60)
    assert victim.info().submodels == ()
    assert list((tmp_path / "dev-1-cache").iterdir()) == []
