"""A device over the in-memory transport that answers what a test says."""

from __future__ import annotations

import json

import numpy as np

from edvit.runtime.wire.header import decode, encode
from edvit.runtime.wire.messages import DeviceInfo, HeldSubModel, InferRequest, LoadRequest
from edvit.runtime.wire.packet import Packet
from edvit.runtime.wire.topics import ALIVE, INFER, INFO, LOAD
from edvit.runtime.wire.transport import Reply
from tiny_bundle import FEATURE_DIM


class Liar:
    """A device that says it holds what it is told to, and answers with whatever it is given."""

    def __init__(self, fleet, name):
        self.node = fleet.node()
        self.name = name
        self.answers = []
        self.honest = True
        here = {"fleet": "local", "device": name}
        self.node.serve(INFO.key(**here), lambda request: [Reply(INFO.key(**here), encode(self._info()))])
        self.node.serve(LOAD.key(**here), self._on_load)
        self.node.serve(INFER.key(**here, submodel="*"), self._on_infer)
        self.node.announce(ALIVE.key(**here, instance="a" * 16))

    def _info(self, **held):
        return DeviceInfo(device=self.name, instance="a" * 16, version="0", host="h", pid=1, threads=1, **held)

    def _on_load(self, request):
        asked = decode(LoadRequest, request.packet)
        held = tuple(
            HeldSubModel(bundle=asked.bundle, id=s.id, sha256=s.sha256, memory_bytes=s.memory_bytes)
            for s in asked.submodels
        )
        info = self._info(submodels=held)
        yield Reply(LOAD.key(fleet="local", device=self.name), encode(info))

    def _on_infer(self, request):
        asked = decode(InferRequest, request.packet)
        answers = [infer_answer(device=self.name)] if self.honest else []
        for answer in [*answers, *self.answers]:
            yield to_request(answer, asked.request)


def to_request(answer, request):
    """The same answer as one to this request, where it is not one to another."""
    header = answer.packet.header.replace(b'"here"', f'"{request}"'.encode())
    return Reply(answer.key, Packet(header, answer.packet.payload))


def infer_answer(key_submodel=1, key_device=None, payload=None, **changes):
    header = {
        "wire": 3,
        "dtype": "float32",
        "shape": [1, FEATURE_DIM],
        "request": "here",
        "submodel": 1,
        "device": "dev-2",
        "seconds": 0.0,
    }
    header.update(changes)
    key = INFER.key(fleet="local", submodel=key_submodel, device=key_device or header["device"])
    payload = np.zeros(FEATURE_DIM, "<f4").tobytes() if payload is None else payload
    return Reply(key, Packet(json.dumps(header).encode(), payload))
