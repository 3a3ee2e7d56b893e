from __future__ import annotations

import errno
import json
import threading
import time

import numpy as np
import pytest

from edvit.errors import (
    ConfigError,
    DigestError,
    EdvitError,
    FleetTakenError,
    ImageError,
    MemoryLimitError,
    ModelError,
    ServiceError,
    UnavailableError,
    VersionError,
    WireError,
)
from edvit.runtime.device import agent as device
from edvit.runtime.device.model_cache import ModelCache
from edvit.runtime.engine.submodel import CHUNK, SubModelEngine
from edvit.runtime.gateway.model_files import serve_model_files
from edvit.runtime.wire.header import decode, encode
from edvit.runtime.wire.image_encoding import decode_images
from edvit.runtime.wire.messages import (
    BlobReply,
    BlobRequest,
    DeviceInfo,
    InferReply,
    InferRequest,
    InfoRequest,
    LoadRequest,
    RefuseRequest,
    SubModelSpec,
    to_array,
    to_payload,
)
from edvit.runtime.wire.packet import Packet
from edvit.runtime.wire.topics import BLOB, GATEWAY_ALIVE, INFER, INFO, LOAD, REFUSE
from edvit.runtime.wire.transport import Failure, Reply
from fleet_in_memory import memory_fleet, some_images
from tiny_bundle import FEATURE_DIM, write_tiny_bundle
from waiting import eventually

PLACE = {"fleet": "local", "device": "dev-1"}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_tiny_bundle(tmp_path_factory.mktemp("device") / "bundle", submodels=3, classes=6)


@pytest.fixture
def fleet(bundle, tmp_path):
    with memory_fleet(bundle, tmp_path / "cache") as fleet:
        yield fleet


@pytest.fixture
def node(fleet, bundle):
    """A bare participant that has the bundle's models: what a gateway is to a device."""
    node = fleet.node()
    serve_model_files(bundle, node)
    return node


REQUEST = "0" * 16


def spec_of(bundle, submodel, **changes):
    info = bundle.manifest.submodel(submodel)
    return SubModelSpec(
        **{
            "id": submodel,
            "sha256": info.model.sha256,
            "bytes": info.model.bytes,
            "memory_bytes": info.peak_memory_bytes,
            "channels": 3,
            "image_size": 16,
            "feature_dim": FEATURE_DIM,
            **changes,
        }
    )


def ask(node, key, packet, deadline_s=60.0):
    return list(node.ask(key, packet, deadline_s=deadline_s))


def load(node, agent, bundle, *submodels, specs=None, digest=None, **changes):
    request = LoadRequest(
        **{
            "gateway": REQUEST,
            "gateway_host": "there",
            "instance": agent.instance,
            "bundle": digest or bundle.digest,
            "submodels": specs or tuple(spec_of(bundle, submodel) for submodel in submodels),
            "deadline_s": 60.0,
            **changes,
        }
    )
    (reply,) = ask(node, LOAD.key(**PLACE), encode(request))
    if isinstance(reply, Failure):
        raise reply.error
    return decode(DeviceInfo, reply.packet)


def infer(node, bundle, images, *, submodel="*", digest=None, deadline_s=60.0):
    header = InferRequest(request=REQUEST, shape=images.shape, bundle=digest or bundle.digest, deadline_s=deadline_s)
    return ask(node, INFER.key(**PLACE, submodel=submodel), encode(header, to_payload(images)))


def features(replies):
    found = {}
    for reply in replies:
        header = decode(InferReply, reply.packet)
        assert reply.key == INFER.key(**PLACE, submodel=header.submodel)
        found[header.submodel] = to_array(header, reply.packet.payload)
    return found


def reference(bundle, submodel, images):
    path = bundle.path / f"submodel-{submodel}.onnx"
    return SubModelEngine(path, channels=3, image_size=16, feature_dim=FEATURE_DIM).run(images)


def test_it_says_what_it_is_and_holds(fleet, node, bundle):
    agent = fleet.device("dev-1", memory_limit_bytes=10**9, threads=2)
    (reply,) = ask(node, INFO.key(**PLACE), encode(InfoRequest()))
    info = decode(DeviceInfo, reply.packet)
    assert info == agent.info()
    assert (info.device, info.instance, info.threads) == ("dev-1", agent.instance, 2)
    assert (info.submodels, info.memory_bytes) == ((), 0)
    loaded = load(node, agent, bundle, 0, 2)
    assert [held.id for held in loaded.submodels] == [0, 2]
    assert {held.bundle for held in loaded.submodels} == {bundle.digest}
    assert loaded.memory_bytes == sum(bundle.manifest.submodel(i).peak_memory_bytes for i in (0, 2))
    assert agent.info() == loaded


def test_it_answers_once_per_submodel(fleet, node, bundle):
    agent = fleet.device("dev-1")
    load(node, agent, bundle, 0, 2)
    images = some_images(bundle)
    found = features(infer(node, bundle, images))
    assert sorted(found) == [0, 2]
    for submodel, feature in found.items():
        assert np.array_equal(feature, reference(bundle, submodel, images))
    assert sorted(features(infer(node, bundle, images, submodel=2))) == [2]
    assert infer(node, bundle, images, submodel=1) == []


def test_it_answers_with_the_submodels_that_are_asked_for(fleet, node, bundle):
    load(node, fleet.device("dev-1"), bundle, 0, 2)
    images = np.zeros((1, 3, 16, 16), np.uint8)
    header = InferRequest(request=REQUEST, shape=images.shape, bundle=bundle.digest, submodels=(1, 2), deadline_s=60.0)
    assert set(features(ask(node, INFER.key(**PLACE, submodel="*"), encode(header, to_payload(images))))) == {2}


def test_a_device_without_submodels_is_not_sent_any_input(fleet, node, bundle):
    agent = fleet.device("dev-1")
    assert infer(node, bundle, some_images(bundle)) == []
    load(node, agent, bundle, 0)
    assert len(infer(node, bundle, some_images(bundle))) == 1
    load(node, agent, bundle)
    assert agent.info().submodels == ()
    eventually(lambda: infer(node, bundle, some_images(bundle)) == [])


def test_a_device_whose_load_failed_is_not_sent_any_input(fleet, node, bundle):
    agent = fleet.device("dev-1")
    load(node, agent, bundle, 0)
    with pytest.raises(UnavailableError, match="no gateway"):
        load(node, agent, bundle, specs=(spec_of(bundle, 1, sha256="0" * 64),))
    assert agent.info().submodels == ()
    # Whoever served the key would refuse an input of another bundle.
    assert infer(node, bundle, some_images(bundle), digest="f" * 64) == []


def test_loading_the_same_again_fetches_nothing(fleet, node, bundle, tmp_path):
    said = []
    agent = fleet.device("dev-1", say=said.append)
    load(node, agent, bundle, 0)
    load(node, agent, bundle, 0, 1)
    load(node, agent, bundle, 1)
    assert [line.split(":")[0] for line in said] == ["sub-model 0", "sub-model 1"]
    assert [held.id for held in agent.info().submodels] == [1]


def test_what_passes_the_limit_is_refused_and_nothing_is_dropped(fleet, node, bundle):
    one = bundle.manifest.submodel(0).peak_memory_bytes
    agent = fleet.device("dev-1", memory_limit_bytes=2 * one + 100)
    load(node, agent, bundle, 0, 1)
    with pytest.raises(MemoryLimitError, match=r"^the planned sub-models need"):
        load(node, agent, bundle, 0, 1, 2)
    with pytest.raises(MemoryLimitError):
        load(node, agent, bundle, 0, 1, memory_limit_bytes=2 * one - 1000)
    assert [held.id for held in agent.info().submodels] == [0, 1]
    assert len(infer(node, bundle, some_images(bundle))) == 2


# --- two bundles at once -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    return write_tiny_bundle(tmp_path_factory.mktemp("device") / "other", submodels=3, classes=6, seed=9)


def held_by(agent):
    return [(held.bundle, held.id) for held in agent.info().submodels]


def test_a_new_bundle_is_held_beside_the_old_one_and_neither_answers_for_the_other(fleet, node, bundle, other):
    serve_model_files(other, node)
    agent = fleet.device("dev-1")
    load(node, agent, bundle, 0)
    load(node, agent, other, 0, 2, beside=(bundle.digest,))
    assert held_by(agent) == [(bundle.digest, 0), (other.digest, 0), (other.digest, 2)]
    images = some_images(bundle)
    for one, ids in ((bundle, [0]), (other, [0, 2])):
        found = features(infer(node, one, images))
        assert sorted(found) == ids
        for submodel, feature in found.items():
            assert np.array_equal(feature, reference(one, submodel, images))
    load(node, agent, bundle, 1, beside=(other.digest,))
    assert held_by(agent) == [(other.digest, 0), (other.digest, 2), (bundle.digest, 1)]
    load(node, agent, other, 0, 2)
    assert held_by(agent) == [(other.digest, 0), (other.digest, 2)]
    (reply,) = infer(node, bundle, images)
    assert isinstance(reply.error, UnavailableError)


def test_a_new_bundle_that_cannot_be_loaded_leaves_the_old_one(fleet, node, bundle):
    agent = fleet.device("dev-1")
    load(node, agent, bundle, 0)
    with pytest.raises(UnavailableError, match="no gateway"):
        load(
            node, agent, bundle, digest="f" * 64, specs=(spec_of(bundle, 1, sha256="0" * 64),), beside=(bundle.digest,)
        )
    assert held_by(agent) == [(bundle.digest, 0)]
    assert len(infer(node, bundle, some_images(bundle))) == 1


def test_the_limit_counts_both_bundles(fleet, node, bundle):
    one = bundle.manifest.submodel(0).peak_memory_bytes
    agent = fleet.device("dev-1", memory_limit_bytes=2 * one + 100)
    load(node, agent, bundle, 0, 1)
    with pytest.raises(MemoryLimitError, match=r"need 0\.0 MB beside the 0\.0 MB of the other bundle, the limit is"):
        load(node, agent, bundle, 2, digest="f" * 64, beside=(bundle.digest,))
    assert held_by(agent) == [(bundle.digest, 0), (bundle.digest, 1)]
    load(node, agent, bundle, 2, digest="f" * 64)
    assert held_by(agent) == [("f" * 64, 2)]


def test_what_cannot_be_loaded_is_told_at_the_device_once(fleet, node, bundle, monkeypatch):
    said = []
    agent = fleet.device(
        "dev-1", memory_limit_bytes=bundle.manifest.submodel(0).peak_memory_bytes + 100, say=said.append
    )
    for _ in range(3):
        with pytest.raises(MemoryLimitError):
            load(node, agent, bundle, 0, 1)
    monkeypatch.setattr(ModelCache, "_download", _disk_full)
    with pytest.raises(ServiceError):
        load(node, agent, bundle, 0)
    monkeypatch.undo()
    load(node, agent, bundle, 0)
    with pytest.raises(MemoryLimitError):
        load(node, agent, bundle, 0, 1)
    refused, full, loaded, again = said
    assert refused.startswith("cannot load what the gateway plans: the planned sub-models need")
    assert full == "cannot load what the gateway plans: the device cannot store a model file: No space left on device"
    assert loaded.startswith("sub-model 0")
    assert again == refused


def _disk_full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_device_for_which_nothing_is_planned_says_so(fleet, node, bundle):
    said = []
    load(node, fleet.device("dev-1", say=said.append), bundle)
    assert said == ["the gateway plans no sub-model for this device"]


def test_a_device_says_what_it_waits_for_whenever_there_is_no_gateway(fleet, node, monkeypatch):
    monkeypatch.setattr(device, "ALONE_FIRST_S", 0.02)
    monkeypatch.setattr(device, "ALONE_S", 0.02)
    said = []
    agent = fleet.device("dev-1", say=said.append)
    running = threading.Thread(target=agent.run, args=("no gateway at HOST",))
    running.start()
    for _ in range(2):
        before = len(said)
        eventually(lambda before=before: len(said) >= before + 2)
        gateway = node.announce(GATEWAY_ALIVE.key(fleet="local", instance="a" * 16))
        eventually(lambda: agent._gateways)
        count = len(said)
        time.sleep(0.2)
        assert len(said) <= count + 1  # one may have been on its way
        gateway.close()
    assert set(said) == {"no gateway at HOST"}
    agent.stop()
    running.join(20)
    assert not running.is_alive()


def test_a_gateway_cannot_take_a_device_from_another_one_that_is_there(fleet, node, bundle):
    agent = fleet.device("dev-1")
    first = node.announce(GATEWAY_ALIVE.key(fleet="local", instance="a" * 16))
    eventually(lambda: agent._gateways)
    load(node, agent, bundle, 0, gateway="a" * 16, gateway_host="pc-1\x1b[2J")
    load(node, agent, bundle, 0, gateway="b" * 16)  # the same bundle: nothing changes
    load(node, agent, bundle, 0, gateway="a" * 16, gateway_host="pc-1\x1b[2J")
    with pytest.raises(
        FleetTakenError, match=r"the gateway on pc-1\\x1b\[2J, with another bundle, " + bundle.digest[:12]
    ):
        load(node, agent, bundle, 0, gateway="b" * 16, digest="f" * 64)
    assert [held.id for held in agent.info().submodels] == [0]
    first.close()
    eventually(lambda: not agent._gateways)
    load(node, agent, bundle, 0, gateway="b" * 16, digest="f" * 64)
    assert {held.bundle for held in agent.info().submodels} == {"f" * 64}


def test_a_model_with_another_digest_is_refused(fleet, bundle):
    node = fleet.node()
    agent = fleet.device("dev-1")
    data = (bundle.path / "submodel-1.onnx").read_bytes()

    def lie(request):
        asked = decode(BlobRequest, request.packet)
        part = data[asked.offset :][: asked.length]
        yield Reply(request.key, encode(BlobReply(offset=asked.offset, length=len(part)), part))

    node.serve(BLOB.key(fleet="local", sha256="*"), lie)
    with pytest.raises(DigestError):
        load(node, agent, bundle, 0, specs=(spec_of(bundle, 0, bytes=len(data)),))
    assert list(fleet.cache.iterdir()) == []
    assert load(node, agent, bundle, 1).submodels[0].id == 1


def test_a_corrupted_cache_file_is_fetched_again(fleet, node, bundle):
    first = fleet.device("dev-1")
    load(node, first, bundle, 0)
    first.node.close()
    (cached,) = fleet.cache.iterdir()
    whole = cached.read_bytes()
    cached.write_bytes(b"x" + whole[1:])
    agent = fleet.device("dev-1")
    load(node, agent, bundle, 0)
    assert cached.read_bytes() == whole


def test_without_a_gateway_the_cache_is_enough(fleet, node, bundle):
    first = fleet.device("dev-1")
    load(node, first, bundle, 0)
    first.node.close()
    node.close()
    other = fleet.node()
    second = fleet.device("dev-1")
    assert load(other, second, bundle, 0).submodels[0].id == 0
    with pytest.raises(UnavailableError, match="no gateway"):
        load(other, second, bundle, 1)


def test_models_of_earlier_bundles_make_room_and_what_is_loaded_stays(fleet, node, bundle):
    sizes = [bundle.manifest.submodel(i).model.bytes for i in range(3)]
    agent = fleet.device("dev-1", cache_limit_bytes=sum(sizes[:2]) + 10)
    load(node, agent, bundle, 0)
    load(node, agent, bundle, 1)
    load(node, agent, bundle, 1, 2)
    names = {bundle.manifest.submodel(i).model.sha256 for i in (1, 2)}
    assert {path.stem for path in fleet.cache.iterdir()} == names
    with pytest.raises(ServiceError, match="finds no room in the cache"):
        load(node, agent, bundle, 0, 1, 2)
    assert {path.stem for path in fleet.cache.iterdir()} == names
    assert {held.id for held in agent.info().submodels} == {1, 2}


def test_what_the_gateway_plans_does_not_make_room_for_the_rest_of_it(fleet, node, bundle):
    sizes = [bundle.manifest.submodel(i).model.bytes for i in range(3)]
    agent = fleet.device("dev-1", cache_limit_bytes=sum(sizes[:2]) + 10)
    load(node, agent, bundle, 0)
    load(node, agent, bundle, 1)
    asked = []
    node.serve(BLOB.key(fleet="local", sha256="*"), lambda request: asked.append(request.key) or ())
    load(node, agent, bundle)
    load(node, agent, bundle, 1, 0)
    assert asked == []


def test_a_model_larger_than_the_limit_of_the_cache_is_one_line(fleet, node, bundle):
    said = []
    agent = fleet.device("dev-1", cache_limit_bytes=100, say=said.append)
    with pytest.raises(ServiceError, match=r"larger than the limit of the cache, 0\.0 MB; .* --cache-limit"):
        load(node, agent, bundle, 0)
    assert len(said) == 1
    assert "\n" not in said[0]


@pytest.mark.parametrize("changes", [{"feature_dim": 9}, {"image_size": 8}, {"channels": 1}], ids=str)
def test_a_model_that_is_not_what_the_gateway_says_is_refused(fleet, node, bundle, changes):
    agent = fleet.device("dev-1")
    with pytest.raises(ModelError):
        load(node, agent, bundle, specs=(spec_of(bundle, 0, **changes),))
    assert agent.info().submodels == ()


def test_a_request_for_another_process_of_this_name_is_refused(fleet, node, bundle):
    agent = fleet.device("dev-1")
    with pytest.raises(UnavailableError, match="restarted"):
        load(node, agent, bundle, 0, instance="0" * 16)


def test_a_request_of_another_bundle_is_refused(fleet, node, bundle):
    agent = fleet.device("dev-1")
    load(node, agent, bundle, 0)
    (reply,) = infer(node, bundle, some_images(bundle), digest="f" * 64)
    assert isinstance(reply.error, UnavailableError)
    load(node, agent, bundle, 0, digest="f" * 64)
    (reply,) = infer(node, bundle, some_images(bundle))
    assert isinstance(reply.error, UnavailableError)


def test_what_is_past_its_deadline_is_dropped(fleet, node, bundle, monkeypatch):
    agent = fleet.device("dev-1")
    load(node, agent, bundle, 0, 1)
    runs = []
    run = SubModelEngine.run

    def slow(self, images):
        runs.append(self)
        time.sleep(0.05)
        return run(self, images)

    monkeypatch.setattr(SubModelEngine, "run", slow)
    # The first sub-model passes the deadline; the second is not started any more.
    replies = infer(node, bundle, some_images(bundle), deadline_s=0.04)
    assert len(replies) == 1
    assert len(runs) == 1


def test_what_waited_past_its_deadline_is_not_even_decoded(fleet, node, bundle, monkeypatch):
    agent = fleet.device("dev-1")
    load(node, agent, bundle, 0)
    began, let_go, decoded = threading.Event(), threading.Event(), []
    run = SubModelEngine.run
    monkeypatch.setattr(SubModelEngine, "run", lambda *args: (began.set(), let_go.wait(30), run(*args))[2])
    monkeypatch.setattr(device, "decode_images", lambda *args: (decoded.append(args), decode_images(*args))[1])
    first = threading.Thread(target=infer, args=(node, bundle, some_images(bundle)))
    first.start()
    assert began.wait(30)
    late = InferRequest(request=REQUEST, shape=(1, 3, 16, 16), bundle=bundle.digest, deadline_s=0.05)
    replies = node.ask(INFER.key(**PLACE, submodel="*"), encode(late, bytes(3 * 16 * 16)), deadline_s=60.0)
    time.sleep(0.1)
    let_go.set()
    first.join(30)
    assert list(replies) == []
    assert len(infer(node, bundle, some_images(bundle))) == 1
    assert len(decoded) == 2


def test_a_batch_that_passes_its_deadline_is_given_up_in_between(fleet, node, bundle, monkeypatch):
    agent = fleet.device("dev-1")
    load(node, agent, bundle, 0)
    sizes = []
    run = SubModelEngine.run

    def slow(self, images):
        sizes.append(len(images))
        time.sleep(0.05)
        return run(self, images)

    monkeypatch.setattr(SubModelEngine, "run", slow)
    assert infer(node, bundle, some_images(bundle, 10 * CHUNK), deadline_s=0.04) == []
    eventually(lambda: infer(node, bundle, some_images(bundle, 1)))  # until then it may be busy
    assert sizes in ([CHUNK, 1], [1])


GOOD = {"wire": 3, "request": "0" * 16, "dtype": "uint8", "shape": [1, 3, 16, 16], "deadline_s": 60.0}


@pytest.mark.parametrize(
    "lie",
    [
        ({}, b"", WireError),
        ({}, bytes(3 * 16 * 16 + 1), WireError),
        ({"shape": [2, 3, 16, 16]}, bytes(3 * 16 * 16), WireError),
        ({"shape": [2**40, 3, 16, 16]}, bytes(3 * 16 * 16), WireError),
        ({"shape": [1, 3, 8, 32]}, bytes(3 * 16 * 16), ImageError),
        ({"shape": [1, 1, 16, 16]}, bytes(16 * 16), ImageError),
        ({"dtype": "float32"}, bytes(4 * 3 * 16 * 16), WireError),
        ({"wire": 1}, bytes(3 * 16 * 16), VersionError),
        ({"more": 1}, bytes(3 * 16 * 16), WireError),
    ],
    ids=str,
)
def test_lies_are_refused_and_the_device_lives_on(fleet, node, bundle, lie):
    changes, payload, error = lie
    agent = fleet.device("dev-1")
    load(node, agent, bundle, 0)
    header = json.dumps({**GOOD, "bundle": bundle.digest, **changes}).encode()
    (reply,) = ask(node, INFER.key(**PLACE, submodel="*"), Packet(header, payload))
    assert type(reply.error) is error
    assert len(infer(node, bundle, some_images(bundle))) == 1


@pytest.mark.parametrize("topic", [INFO, LOAD, REFUSE], ids=lambda topic: topic.pattern)
@pytest.mark.parametrize("header", [b"", b"{", b"[]", b"\xff" * 100, b'{"a":' * 1000])
def test_malformed_requests_are_refused(fleet, node, topic, header):
    fleet.device("dev-1")
    (reply,) = ask(node, topic.key(**PLACE), Packet(header))
    assert type(reply.error) is WireError
    (reply,) = ask(node, INFO.key(**PLACE), encode(InfoRequest()))
    assert isinstance(reply, Reply)


def test_a_defect_does_not_tell_its_detail(fleet, node, bundle, monkeypatch):
    agent = fleet.device("dev-1")
    load(node, agent, bundle, 0)

    def broken(self, images):
        raise RuntimeError("secret of this device")

    with monkeypatch.context() as patch:
        patch.setattr(SubModelEngine, "run", broken)
        (reply,) = infer(node, bundle, some_images(bundle))
    assert reply.error.code == EdvitError.code
    assert "secret" not in str(reply.error)
    assert len(infer(node, bundle, some_images(bundle))) == 1


def test_a_refused_device_ends_with_one_line(fleet, node):
    agent = fleet.device("dev-1")
    ended = []

    def run():
        with pytest.raises(ConfigError, match="a device named dev-1 is already running in fleet local") as refused:
            agent.run()
        ended.append(str(refused.value))

    thread = threading.Thread(target=run)
    thread.start()
    assert ask(node, REFUSE.key(**PLACE), encode(RefuseRequest(instance="0" * 16))) == []
    assert ask(node, REFUSE.key(**PLACE), encode(RefuseRequest(instance=agent.instance)))
    thread.join(20)
    assert len(ended) == 1
    assert "\n" not in ended[0]


def test_stopping_ends_it_without_an_error(fleet):
    agent = fleet.device("dev-1")
    threading.Timer(0.05, agent.stop).start()
    agent.run()
