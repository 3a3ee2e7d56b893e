"""Real connections to a real server: too many, too slow, and those that are open when it ends."""

import contextlib
import resource
import socket
import ssl
import threading
from datetime import datetime, timezone
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI, Response

from edvit.runtime.http import connections
from edvit.runtime.http.connections import MOST, OTHER_HANDLES, most_connections
from edvit.runtime.http.server import HttpServer, HttpsFiles, bind
from edvit.runtime.keys.authority import make_authority
from waiting import eventually


@pytest.fixture
def serve():
    """Starts a server; its URL's `/hang` answers once `release` is set, `/body` once it has the whole body."""
    app = FastAPI()
    app.state.begun, app.state.release = threading.Semaphore(0), threading.Event()

    @app.get("/")
    def hello() -> str:
        return "hello"

    @app.get("/hang")
    async def hang() -> str:
        import asyncio

        app.state.begun.release()
        while not app.state.release.is_set():
            await asyncio.sleep(0.01)
        return "at last"

    with contextlib.ExitStack() as stack:

        def start(https=None):
            server = HttpServer(app, bind("127.0.0.1", 0), https)
            stack.callback(server.close)
            return server.start()

        start.app = app
        yield start
        app.state.release.set()


def connect(url, text="", source="127.0.0.1"):
    url = httpx.URL(url)
    connection = socket.create_connection((url.host, url.port), timeout=60, source_address=(source, 0))
    connection.sendall(text.encode())
    return connection


def everything(connection):
    """What still comes over a connection, to its end."""
    said = b""
    with contextlib.suppress(ConnectionResetError):
        while more := connection.recv(65536):
            said += more
    return said.decode()


def test_connections_that_send_no_request_make_room_for_one_that_does(serve, monkeypatch):
    monkeypatch.setattr(connections, "MOST", 20)
    url = serve().url
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(connect(url)) for _ in range(60)]
        assert httpx.get(url).json() == "hello"
        assert everything(idle[0]) == ""  # the oldest is closed first
        assert httpx.get(url).json() == "hello"


def test_connections_that_are_kept_alive_make_room(serve, monkeypatch):
    monkeypatch.setattr(connections, "MOST", 16)
    url = serve().url
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(httpx.Client(base_url=url)) for _ in range(30)]
        for client in [*clients, *clients]:  # a connection that was closed meanwhile is opened again
            assert client.get("/").json() == "hello"


def test_the_address_that_has_the_most_connections_loses_one(serve, monkeypatch):
    monkeypatch.setattr(connections, "MOST", 20)
    url = serve().url
    with contextlib.ExitStack() as stack:
        polite = stack.enter_context(connect(url, source="127.0.0.2"))
        many = [stack.enter_context(connect(url)) for _ in range(40)]
        assert everything(many[0]) == ""
        polite.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert '"hello"' in everything(polite)


def test_a_connection_is_refused_in_words_where_every_other_one_is_worked_for(serve, monkeypatch):
    monkeypatch.setattr(connections, "MOST", 16)
    url = serve().url
    with contextlib.ExitStack() as stack:
        busy = [stack.enter_context(connect(url, "GET /hang HTTP/1.1\r\nHost: x\r\n\r\n")) for _ in range(16)]
        for _ in busy:
            assert serve.app.state.begun.acquire(timeout=60)
        response = httpx.get(url)
        assert (response.status_code, response.json()["error"]["code"]) == (503, "overloaded")
        assert response.headers["retry-after"] == "1"
        serve.app.state.release.set()
        assert busy[0].recv(1000).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("text", ["", "GET / HTTP/1.1\r\nHost: x\r\n", "GET"], ids=["nothing", "headers", "word"])
def test_headers_that_do_not_end_are_not_waited_for(serve, monkeypatch, text):
    monkeypatch.setattr(connections, "HEADER_S", 0.1)
    monkeypatch.setattr(connections, "LOOK_S", 0.05)
    url = serve().url
    with connect(url, text) as slow:
        assert everything(slow) == ""


def test_a_second_request_has_the_same_time_for_its_headers(serve, monkeypatch):
    url = serve().url
    with connect(url, "GET / HTTP/1.1\r\nHost: x\r\n\r\n") as slow:
        assert slow.recv(1000).startswith(b"HTTP/1.1 200")
        monkeypatch.setattr(connections, "HEADER_S", 0.1)
        slow.sendall(b"GET / HT")
        assert everything(slow).count("HTTP/1.1") == 0


def test_a_request_that_is_worked_on_is_not_closed(serve, monkeypatch):
    monkeypatch.setattr(connections, "HEADER_S", 0.05)
    monkeypatch.setattr(connections, "LOOK_S", 0.02)
    url = serve().url
    with connect(url, "GET /hang HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n") as asker:
        assert serve.app.state.begun.acquire(timeout=60)
        threading.Event().wait(0.3)
        serve.app.state.release.set()
        assert "at last" in everything(asker)


def test_requests_under_way_at_the_end_get_an_answer_and_leave_no_trace(serve, monkeypatch, caplog):
    server = serve()
    with connect(server.url, "GET /hang HTTP/1.1\r\nHost: x\r\n\r\n") as asker:
        assert serve.app.state.begun.acquire(timeout=60)
        closing = threading.Thread(target=server.close)
        closing.start()
        told = everything(asker)
        closing.join(60)
    assert told.startswith("HTTP/1.1 503")
    assert "the gateway is ending" in told
    assert caplog.records == []


def test_half_a_body_at_the_end_gets_an_answer_and_leaves_no_trace(serve, caplog):
    app = serve.app

    from starlette.requests import Request

    @app.post("/body")
    async def body(request: Request) -> int:
        app.state.begun.release()
        return len(await request.body())

    server = serve()
    with connect(server.url, "POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhalf") as asker:
        assert app.state.begun.acquire(timeout=60)
        server.close()
        assert everything(asker).startswith("HTTP/1.1 503")
    assert caplog.records == []


@pytest.mark.parametrize(("handles", "most"), [(100, 16), (256, 256 - OTHER_HANDLES), (1024, MOST), (-1, MOST)])
def test_there_are_fewer_connections_than_handles(monkeypatch, handles, most):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (handles, -1))
    assert most_connections() == most


def test_closed_connections_are_forgotten(serve, monkeypatch):
    monkeypatch.setattr(connections, "MOST", 16)
    url = serve().url
    for _ in range(40):
        connect(url).close()
    with contextlib.ExitStack() as stack:
        kept = [stack.enter_context(connect(url)) for _ in range(8)]
        for one in kept:
            one.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            eventually(lambda one=one: "hello" in everything(one))


BIG = 8_000_000
"""Bytes of an answer that no buffers of the system hold."""

ASK_BIG = "GET /big HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture
def big(serve):
    """A URL whose `/big` has `BIG` bytes, and counts how often it has been asked."""
    serve.asked = []

    @serve.app.get("/big")
    def big() -> Response:
        serve.asked.append(1)
        return Response(bytes(BIG))

    return serve


def connect_small(url, text, source="127.0.0.1"):
    """A connection with little room for what is not read."""
    url = httpx.URL(url)
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(60)
    connection.bind((source, 0))
    connection.connect((url.host, url.port))
    connection.sendall(text.encode())
    return connection


def test_answers_that_are_not_read_make_room(big, monkeypatch):
    monkeypatch.setattr(connections, "MOST", 16)
    monkeypatch.setattr(connections, "UNREAD_S", 3600)
    url = big().url
    with contextlib.ExitStack() as stack:
        for _ in range(16):
            stack.enter_context(connect_small(url, ASK_BIG * 4, "127.0.0.2"))
        eventually(lambda: len(big.asked) == 16)
        eventually(lambda: httpx.get(url).status_code == 200)
        assert len(big.asked) == 16  # those behind one that is not read wait


def test_an_answer_that_is_not_read_is_given_up(big, monkeypatch):
    monkeypatch.setattr(connections, "UNREAD_S", 0.2)
    monkeypatch.setattr(connections, "LOOK_S", 0.05)
    url = big().url
    with connect_small(url, ASK_BIG) as lazy:
        eventually(lambda: len(big.asked) == 1)
        threading.Event().wait(1)
        assert len(everything(lazy)) < BIG


def test_an_answer_that_is_read_slowly_is_sent_to_its_end(big, monkeypatch):
    monkeypatch.setattr(connections, "UNREAD_S", 4)
    monkeypatch.setattr(connections, "LOOK_S", 0.05)
    url = big().url
    with connect_small(url, "GET /big HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n") as slow:
        said = 0
        for step in range(1, 11):
            threading.Event().wait(0.5)
            while said < 200_000 * step:
                said += len(slow.recv(100_000))
        assert said + len(everything(slow)) > BIG


@pytest.fixture
def https(serve, tmp_path):
    """Starts the server with HTTPS; returns its URL and what a client trusts."""
    make_authority(tmp_path, ["127.0.0.1"], datetime.now(timezone.utc))

    def start():
        url = serve(HttpsFiles(tmp_path / "gateway.crt", tmp_path / "gateway.key")).url
        return url, ssl.create_default_context(cafile=tmp_path / "ca.crt")

    return start


def test_handshakes_that_are_never_begun_make_room(https, monkeypatch):
    monkeypatch.setattr(connections, "MOST", 16)
    monkeypatch.setattr(connections, "HEADER_S", 3600)
    url, trusted = https()
    before = len(list(Path("/proc/self/fd").iterdir()))
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(connect(url, source="127.0.0.2")) for _ in range(60)]
        assert httpx.get(url, verify=trusted, trust_env=False).json() == "hello"
        assert everything(idle[0]) == ""
        eventually(lambda: len(list(Path("/proc/self/fd").iterdir())) <= before + 60 + 20)


@pytest.mark.parametrize("text", ["", "\x16\x03\x01", "GET / HTTP/1.1\r\n\r\n"], ids=["nothing", "begun", "plain"])
def test_a_handshake_that_does_not_end_is_not_waited_for(https, monkeypatch, text):
    monkeypatch.setattr(connections, "HEADER_S", 0.1)
    monkeypatch.setattr(connections, "LOOK_S", 0.05)
    url, _ = https()
    with connect(url, text) as slow:
        assert "HTTP" not in everything(slow)


def test_a_request_that_comes_with_the_end_of_the_handshake_is_answered(https):
    url, trusted = https()
    for _ in range(20):
        with trusted.wrap_socket(connect(url), server_hostname="127.0.0.1", do_handshake_on_connect=False) as asker:
            asker.do_handshake()
            asker.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert '"hello"' in everything(asker)
