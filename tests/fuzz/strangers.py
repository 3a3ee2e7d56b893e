"""Parsers of what a gateway and its operator get from others: headers and query, a deploy's body, key files."""

from __future__ import annotations

import asyncio
import json
import tempfile
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator
from datetime import datetime, timezone
from pathlib import Path

from limits import parse
from starlette.requests import Request

from edvit.bundle import read_bundle
from edvit.errors import DeployError
from edvit.runtime.deploy.routes import seconds
from edvit.runtime.deploy.transfer import LENGTH_BYTES, Incoming
from edvit.runtime.http.guard import Guard
from edvit.runtime.http.request_log import RequestLog
from edvit.runtime.http.upload import announced_bytes
from edvit.runtime.keys import certificates
from edvit.runtime.keys.membership import accept
from edvit.runtime.keys.tokens import TokenList, add_token

_LOOP = asyncio.new_event_loop()
_NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)
_KEYS = tempfile.TemporaryDirectory(prefix="fuzz-keys-")
_TOKEN = add_token(Path(_KEYS.name), "operator", ["operate"], _NOW)


async def _inner(scope, receive, send) -> None:
    """What the routes read of a request that the guard lets through."""
    request = Request(scope, receive)
    announced_bytes(request)
    seconds(request.query_params.get("timeout_s"))
    await send({"type": "http.response.start", "status": 202, "headers": []})


_API = RequestLog(Guard(_inner, TokenList(Path(_KEYS.name)), parse("1000000/second")))


def headers(data: bytes) -> None:
    """The query ends at the first line end; then a header a line. `TOKEN` stands for a token that is known."""
    query, *lines = data.replace(b"TOKEN", _TOKEN.encode()).split(b"\n")
    pairs = [(name.strip().lower(), value.strip()) for name, _, value in (line.partition(b":") for line in lines)]
    scope = {"type": "http", "method": "POST", "path": "/deploy", "query_string": query, "headers": pairs}

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, object]) -> None:
        if message["type"] == "http.response.start":
            assert message["status"] in (202, 401, 403, 429)

    _LOOP.run_until_complete(_API(scope, receive, send))


def deploy(data: bytes) -> None:
    """The manifest's text, a zero byte, and the files. The length is put before it, as a hostile sender's would be."""
    text, _, files = data.partition(b"\0")
    body = len(text).to_bytes(LENGTH_BYTES, "big") + text + files

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 1000):
            yield body[start : start + 1000]

    async def store(folder: Path) -> None:
        incoming = Incoming(chunks())
        await incoming.store(folder, *await incoming.manifest())

    with tempfile.TemporaryDirectory(prefix="fuzz-deploy-") as folder:
        try:
            _LOOP.run_until_complete(store(Path(folder)))
        except DeployError as error:
            raise AssertionError("the sender's input is told as a failure of the gateway") from error
        read_bundle(folder)


def _pem(data: bytes, kind: str) -> bytes:
    """Binary data as PEM, so that changed bytes reach the parser behind base64; PEM as it is."""
    if data.startswith(b"-----"):
        return data
    return b"\n".join([f"-----BEGIN {kind}-----".encode(), b64encode(data), f"-----END {kind}-----".encode(), b""])


def _der(pem: bytes) -> bytes:
    return b64decode(b"".join(line for line in pem.splitlines() if not line.startswith(b"-----")))


def key_request(data: bytes) -> None:
    certificates.read_request(_pem(data, "CERTIFICATE REQUEST"))


def certificate(data: bytes) -> None:
    """What a device accepts as the answer to its request: its certificate and the authority's."""
    if not data.startswith(b"-----"):  # the first two bytes are the length of the first certificate
        cut = 2 + int.from_bytes(data[:2], "big")
        data = _pem(data[2:cut], "CERTIFICATE") + _pem(data[cut:], "CERTIFICATE")
    for found in certificates.read_certificates(data):
        certificates.subject_of(found)
    accept(Path(_KEYS.name), data)


def private_key(data: bytes) -> None:
    certificates.read_key(_pem(data, "PRIVATE KEY"))


def seeds_of_headers() -> list[bytes]:
    return [
        b"timeout_s=5&check\nauthorization: Bearer TOKEN\nx-request-id: one\ncontent-length: 12",
        b"timeout_s=nan\nAuthorization: bearer TOKEN\ncontent-length: " + b"9" * 5000,
        b"\nauthorization: Basic a\nx-request-id: a\nx-request-id: b",
    ]


def seeds_of_deploy() -> list[bytes]:
    text = Path(__file__).with_name("corpus").joinpath("manifest", "valid").read_bytes()
    files = json.loads(text)
    size = sum(model["model"]["bytes"] for model in [*files["submodels"], files["fusion"]])
    short = json.dumps(files, separators=(",", ":")).encode()
    return [short + b"\0" + bytes(size), short]


def seeds_of_key_requests() -> list[bytes]:
    made = certificates.make_request("pi-1", certificates.make_key())
    return [made, _der(made)]


def seeds_of_certificates() -> list[bytes]:
    key = certificates.make_key()
    made = certificates.make_authority(key, _NOW)
    device = certificates.make_device("pi-1", key.public_key(), key, _NOW, 9)
    pems = [certificates.certificate_pem(device), certificates.certificate_pem(made)]
    first, second = map(_der, pems)
    return [b"".join(pems), len(first).to_bytes(2, "big") + first + second]


def seeds_of_private_keys() -> list[bytes]:
    made = certificates.key_pem(certificates.make_key())
    return [made, _der(made)]
