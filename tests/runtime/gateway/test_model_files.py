from __future__ import annotations

import hashlib
import random

import pytest

from edvit.errors import UnavailableError, WireError
from edvit.runtime.device.model_cache import ModelCache, fetch_part
from edvit.runtime.gateway.model_files import serve_model_files
from edvit.runtime.wire.messages import BLOB_CHUNK_BYTES
from memory_transport import MemoryNetwork, MemoryTransport
from tiny_bundle import write_tiny_bundle

DATA = random.Random(0).randbytes(2 * BLOB_CHUNK_BYTES + 123)  # its ends are not the "x" that tests put there
DIGEST = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def served(tmp_path):
    network = MemoryNetwork()
    bundle = write_tiny_bundle(tmp_path / "bundle", ballast_bytes=BLOB_CHUNK_BYTES)
    serve_model_files(bundle, MemoryTransport(network))
    return bundle, network


def test_a_gateway_serves_its_models(served, tmp_path):
    bundle, network = served
    node = MemoryTransport(network)
    model = bundle.manifest.submodel(1).model
    file = ModelCache(tmp_path / "cache").get(
        model.sha256, model.bytes, lambda offset, length: fetch_part(node, "local", model.sha256, offset, length)
    )
    assert file.path.read_bytes() == bundle.model_path(model).read_bytes()


def test_what_a_gateway_does_not_have(served):
    bundle, network = served
    node = MemoryTransport(network)
    with pytest.raises(UnavailableError, match="no gateway"):
        fetch_part(node, "local", "0" * 64, 0, 10)
    # The fusion is the gateway's own, and every other file of the machine no business of anyone.
    with pytest.raises(UnavailableError, match="no gateway"):
        fetch_part(node, "local", bundle.manifest.fusion.model.sha256, 0, 10)
    model = bundle.manifest.submodel(0).model
    with pytest.raises(WireError, match="beyond its end"):
        fetch_part(node, "local", model.sha256, model.bytes, 10)


def test_a_bundle_that_is_deleted_under_the_gateway_is_told_in_one_line(served, caplog):
    bundle, network = served
    model = bundle.manifest.submodel(1).model
    bundle.model_path(model).unlink()
    with pytest.raises(UnavailableError, match=r"cannot read a model file of its bundle \(No such file or directory\)"):
        fetch_part(MemoryTransport(network), "local", model.sha256, 0, 10)
    assert not any(record.exc_info for record in caplog.records)
