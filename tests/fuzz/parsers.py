"""One function a parser: it takes bytes and raises nothing but an `EdvitError` that is the sender's fault."""

from __future__ import annotations

import asyncio
import hashlib
import io
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image
from starlette.requests import Request

from edvit.bundle import parse_manifest
from edvit.fleet import load_fleet
from edvit.inputs.audio import Spectrogram
from edvit.inputs.preprocess import Limits, Preprocessing, read_file
from edvit.runtime.engine import four_bits
from edvit.runtime.http.body import NPY, read_array, to_npy
from edvit.runtime.http.upload import read_upload
from edvit.runtime.wire import messages
from edvit.runtime.wire.header import Header, decode, encode
from edvit.runtime.wire.packet import Packet
from fuzz import checkpoints, strangers

_SMALL = Preprocessing(image_size=(8, 8), channels=1, mean=(0.5,), std=(0.5,))
_SOUND = Preprocessing(
    image_size=(16, 16), channels=1, mean=(0.5,), std=(0.5,), spectrogram=Spectrogram.at(8000, seconds=0.5)
)
_LIMITS = Limits(memory_bytes=50_000_000, work=5_000_000)
_KINDS = sorted(
    (kind for kind in vars(messages).values() if isinstance(kind, type) and issubclass(kind, Header)),
    key=lambda kind: kind.__name__,
)
_LOOP = asyncio.new_event_loop()
_FOLDER = Path(tempfile.gettempdir())


def wire(data: bytes) -> None:
    """The first byte says which message, the header ends at the first zero byte, and the payload follows."""
    header, _, payload = data[1:].partition(b"\0")
    kind = _KINDS[data[0] % len(_KINDS)] if data else _KINDS[0]
    message = decode(kind, Packet(header=header, payload=payload))
    if isinstance(message, messages.ArrayHeader) and getattr(message, "encoding", "raw") == "raw":
        messages.to_array(message, payload)


def npy(data: bytes) -> None:
    read_array(data, NPY, _SMALL)


def manifest(data: bytes) -> None:
    parse_manifest(Path("manifest.json"), data)


def fleet(data: bytes) -> None:
    with tempfile.NamedTemporaryFile(dir=_FOLDER, suffix=".yaml") as file:
        file.write(data)
        file.flush()
        load_fleet(file.name)


def multipart(data: bytes) -> None:
    """The content type ends at the first line end, and the body follows."""
    content_type, _, body = data.partition(b"\n")
    pieces = [body[: len(body) // 2], body[len(body) // 2 :]]

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": pieces.pop(0) if pieces else b"", "more_body": bool(pieces)}

    scope = {"type": "http", "method": "POST", "path": "/predict", "headers": [(b"content-type", content_type)]}
    _LOOP.run_until_complete(read_upload(Request(scope, receive)))


def four_bits_container(data: bytes) -> None:
    """The body of a container. Its digest is made right, as a hostile sender's would be."""
    head = four_bits.MAGIC + four_bits.VERSION.to_bytes(4, "little") + hashlib.sha256(data).digest()
    four_bits.unpack(io.BytesIO(head + data), io.BytesIO())


def image(data: bytes) -> None:
    read_file(data, _SMALL, _LIMITS)


def sound(data: bytes) -> None:
    read_file(data, _SOUND, _LIMITS)


PARSERS = {
    "wire": wire,
    "npy": npy,
    "manifest": manifest,
    "fleet": fleet,
    "multipart": multipart,
    "four_bits": four_bits_container,
    "image": image,
    "sound": sound,
    "headers": strangers.headers,
    "deploy": strangers.deploy,
    "key_request": strangers.key_request,
    "certificate": strangers.certificate,
    "private_key": strangers.private_key,
    "tensors": checkpoints.tensors,
    "pytorch": checkpoints.pytorch,
    "config": checkpoints.config,
    "index": checkpoints.index,
    "class_names": checkpoints.class_names,
    "split_by": checkpoints.split_by,
}


@cache  # keys differ each time that they are made
def seeds(name: str) -> list[bytes]:
    """Valid samples of a parser, made by the code itself where it writes the format."""
    return {
        "wire": _wire_seeds,
        "npy": lambda: [to_npy(np.zeros((1, 8, 8), np.uint8)), to_npy(np.zeros((2, 1, 8, 8), np.uint8))],
        "manifest": lambda: [Path(__file__).with_name("corpus").joinpath("manifest", "valid").read_bytes()],
        "fleet": lambda: [b"name: shelf\ndevices:\n- {name: pi-1, profile: raspberry-pi-4b}\n- {name: pi-2}\n"],
        "multipart": lambda: [
            b'multipart/form-data; boundary=x\n--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n'
            b"Content-Type: image/png\r\n\r\nabc\r\n--x--\r\n"
        ],
        "four_bits": _four_bits_seeds,
        "image": _image_seeds,
        "sound": lambda: [
            b"RIFF\x34\0\0\0WAVEfmt \x10\0\0\0\x01\0\x01\0\x40\x1f\0\0\x80\x3e\0\0\x02\0\x10\0data\x10\0\0\0"
            + bytes(16)
        ],
        "headers": strangers.seeds_of_headers,
        "deploy": strangers.seeds_of_deploy,
        "key_request": strangers.seeds_of_key_requests,
        "certificate": strangers.seeds_of_certificates,
        "private_key": strangers.seeds_of_private_keys,
        "tensors": checkpoints.seeds_of_tensors,
        "pytorch": checkpoints.seeds_of_pytorch,
        "config": checkpoints.seeds_of_config,
        "index": checkpoints.seeds_of_index,
        "class_names": checkpoints.seeds_of_class_names,
        "split_by": checkpoints.seeds_of_split_by,
    }[name]()


def _wire_seeds() -> list[bytes]:
    made = [
        messages.InfoRequest(),
        messages.BlobRequest(offset=0, length=4),
        messages.BlobReply(offset=0, length=4),
        messages.InferReply(shape=(1, 2), request="0" * 16, submodel=0, device="pi-1", seconds=0.1),
        messages.InferRequest(shape=(1, 1, 2, 2), bundle="0" * 64, request="0" * 16, deadline_s=1.0),
    ]
    sub = {"id": 0, "sha256": "0" * 64, "memory_bytes": 1}
    spec = messages.SubModelSpec(**sub, bytes=1, channels=1, image_size=messages.ImageSize(2, 2), feature_dim=1)
    held = messages.HeldSubModel(bundle="0" * 64, **sub)
    where = {"host": "h", "pid": 1}
    made += [
        messages.GatewayRequest(),
        messages.GatewayInfo(instance="0" * 16, bundle="0" * 64, age_s=0.5, **where),
        messages.LoadRequest(
            gateway="0" * 16, gateway_host="h", instance="0" * 16, bundle="0" * 64, submodels=(spec,), deadline_s=1.0
        ),
        messages.RefuseRequest(instance="0" * 16),
        messages.RefuseReply(),
        messages.DeviceInfo(device="pi-1", instance="0" * 16, version="1", threads=1, submodels=(held,), **where),
    ]
    packets = [(_KINDS.index(type(message)), encode(message, bytes(message.payload_bytes))) for message in made]
    return [bytes([kind]) + bytes(packet.header) + b"\0" + bytes(packet.payload) for kind, packet in packets]


def _four_bits_seeds() -> list[bytes]:
    matrix = four_bits.PackedMatrix(np.full((33, 3), 3, np.int8), np.full((2, 3), 2, np.uint8))
    return [four_bits.pack(b"before" + matrix.whole().tobytes() + b"after", [matrix])[44:]]


def _image_seeds() -> list[bytes]:
    made = []
    for kind in ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM"):
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8), "red").save(buffer, format=kind)
        made.append(buffer.getvalue())
    return made
