"""Every HTTP request has an id, which its client may give, and a line in the log."""

from __future__ import annotations

import asyncio
import json
import logging
import re

import httpx
import pytest
from starlette.responses import PlainTextResponse

from edvit.errors import ConfigError, UnauthorizedError
from edvit.runtime.http.guard import Guard, parse_rate
from edvit.runtime.http.request_log import RequestLog
from edvit.runtime.keys.tokens import TokenList
from edvit.runtime.logs import JsonLines
from edvit.runtime.request import current, note, note_wire


async def app(scope, receive, send):
    note(degraded=True, missing=(1,))
    for _ in range(2):
        await asyncio.to_thread(note_wire, "f" * 16)
    await PlainTextResponse(current().id)(scope, receive, send)


@pytest.fixture
def ask(caplog):
    """Asks an application; returns the answer and the fields of the request's line."""
    caplog.set_level(logging.INFO)

    def run(over=app, path="/predict", **headers):
        async def go():
            transport = httpx.ASGITransport(RequestLog(over), client=("192.0.2.7", 1234))
            async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
                return await client.get(path, headers=headers)

        caplog.clear()
        answer = asyncio.run(go())
        (record,) = [record for record in caplog.records if record.getMessage() == "request"]
        return answer, json.loads(JsonLines().format(record))

    return run


@pytest.mark.parametrize("given", ["a", "camera-7.2026_11", "A" * 64])
def test_an_id_that_a_client_gives_is_kept(ask, given):
    answer, line = ask(**{"X-Request-Id": given})
    assert answer.headers["x-request-id"] == answer.text == line["request"] == given


@pytest.mark.parametrize("given", [None, "", "A" * 65, "a b", "a\x1bb", "é", 'a"', "a/b"])
def test_another_id_is_replaced(ask, given):
    answer, line = ask(**({} if given is None else {"X-Request-Id": given.encode()}))
    assert re.fullmatch("[0-9a-f]{16}", line["request"])
    assert answer.headers["x-request-id"] == line["request"]


def test_two_ids_are_none(ask):
    async def twice(scope, receive, send):
        await RequestLog(app)({**scope, "headers": [(b"x-request-id", b"a"), (b"x-request-id", b"b")]}, receive, send)

    async def go():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(twice), base_url="http://gateway") as client:
            return await client.get("/")

    assert asyncio.run(go()).text not in ("a", "b")


def test_the_line_says_what_was_asked_and_how_it_ended(ask):
    _, line = ask(path="/predict/%1b%0aforged?token=secret")
    for name in ("time", "level", "logger", "request"):
        line.pop(name)
    assert line.pop("seconds") >= 0
    assert line == {
        "event": "request",
        "method": "GET",
        "path": "/predict/\x1b\nforged",
        "status": 200,
        "client": "192.0.2.7",
        "degraded": True,
        "missing": [1],
        "wire": ["f" * 16, "f" * 16],
    }


def test_a_request_that_is_refused_has_an_id_and_a_line_without_its_token(ask, tmp_path, caplog):
    guarded = Guard(app, TokenList(tmp_path), parse_rate("100/second"))
    answer, line = ask(guarded, authorization="Bearer hunter2-secret")
    assert answer.status_code == line["status"] == UnauthorizedError.http_status
    assert line["code"] == "unauthorized"
    assert answer.headers["x-request-id"] == line["request"]
    assert "hunter2" not in caplog.text


def test_a_request_that_ends_without_an_answer_has_a_line(ask, caplog):
    async def breaks(scope, receive, send):
        raise ConfigError("x")

    with pytest.raises(ConfigError):
        ask(breaks)
    (record,) = caplog.records
    line = json.loads(JsonLines().format(record))
    assert (line["path"], line.get("status")) == ("/predict", None)
