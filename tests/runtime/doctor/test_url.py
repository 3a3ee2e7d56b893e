"""What the doctor says of a gateway's HTTP API; tests/system/test_doctor.py asks a real one."""

from __future__ import annotations

import json
import threading
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from edvit.runtime.doctor.url import check_url
from free_port import free_port

READY = {"status": "ready", "submodels": 1, "missing": [], "missing_classes": []}


@pytest.fixture
def answering():
    """A server that gives one answer to everything, and keeps what it was asked."""
    servers = []

    def start(status=200, body=READY, ahead=timedelta(), location=None):
        class Answer(BaseHTTPRequestHandler):
            def do_GET(self):
                asked.append((self.path, self.headers.get("authorization")))
                self.send_response_only(status)
                self.send_header("date", format_datetime(datetime.now(timezone.utc) + ahead, usegmt=True))
                if location is not None:
                    self.send_header("location", location)
                self.end_headers()
                self.wfile.write(body if isinstance(body, bytes) else json.dumps(body).encode())

            def log_message(self, *_):
                pass

        asked = []
        server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}", asked

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def check(url, token=None, ca=None):
    return [(one.name, one.state) for one in check_url(url, token=token, ca=ca)]


def test_a_ready_gateway_with_the_same_time(answering):
    url, asked = answering()
    assert check(url + "/", token="secret") == [("url", "good"), ("clocks", "good")]
    assert asked == [("/health", "Bearer secret")]


@pytest.mark.parametrize(
    ("status", "body", "state"),
    [
        (503, {**READY, "status": "not-ready", "missing": [0]}, "warning"),
        (200, {**READY, "status": "degraded", "missing": [0]}, "warning"),
        (401, b"", "warning"),
        (403, b"", "warning"),
        (200, b"<html>a printer</html>", "bad"),
        (200, [], "bad"),
        (404, b"", "bad"),
        (302, b"", "bad"),
    ],
)
def test_other_answers(answering, status, body, state):
    assert check(answering(status, body)[0])[0] == ("url", state)


def test_a_token_is_not_carried_elsewhere(answering):
    other, asked = answering()
    assert check(answering(302, b"", location=other)[0], token="secret")[0] == ("url", "bad")
    assert asked == []


@pytest.mark.parametrize(("ahead_s", "state"), [(-7200, "warning"), (200_000, "bad")])
def test_a_gateway_with_another_time(answering, ahead_s, state):
    assert check(answering(ahead=timedelta(seconds=ahead_s))[0])[1] == ("clocks", state)


@pytest.mark.parametrize("url", ["ftp://127.0.0.1", "127.0.0.1:8080", "http://", "http://[", "http://x:y"])
def test_no_address(url):
    assert check(url) == [("url", "bad")]


def test_nothing_there_and_no_certificate(tmp_path):
    assert check(f"http://127.0.0.1:{free_port()}") == [("url", "bad")]
    assert check(f"https://127.0.0.1:{free_port()}", ca=tmp_path / "ca.crt") == [("url", "bad")]
    assert check("http://192.0.2.1:8080", token="secret") == [("url", "bad")]
