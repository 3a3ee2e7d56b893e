import socket
import threading

import pytest

from edvit.errors import ConfigError, DeadlineError, UnavailableError, WireError
from edvit.runtime.http.client import Client
from edvit.runtime.http.server import HttpServer, bind


@pytest.mark.parametrize("url", ["", "somewhere", "127.0.0.1:8080", "ftp://host", "http://", "http://h:x"])
def test_a_url_that_is_none(url):
    with pytest.raises(ConfigError, match="it looks like http://HOST:8080"):
        Client(url)


def test_nothing_there():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with Client(url) as client, pytest.raises(UnavailableError, match="nothing answers there"):
            client.health()


@pytest.mark.parametrize("status", [200, 404, 500])
def test_another_server_is_recognised(status):
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"text/html")]})
        await send({"type": "http.response.body", "body": b"<html>It works!</html>"})

    with HttpServer(app, bind("127.0.0.1", 0)) as server, Client(server.url) as client:
        for ask in (client.health, client.fleet, lambda: client.predict(b"x")):
            with pytest.raises(WireError, match=rf"no edvit gateway \(status {status}\)"):
                ask()


def test_a_server_that_never_answers():
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        client = Client(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout_s=0.05)
        with client, pytest.raises(DeadlineError, match="no answer in time"):
            client.predict(b"x")


def test_a_server_that_hangs_up():
    with socket.socket() as rude:
        rude.bind(("127.0.0.1", 0))
        rude.listen()

        def hang_up():
            connection, _ = rude.accept()
            connection.recv(10)
            connection.close()

        threading.Thread(target=hang_up, daemon=True).start()
        client = Client(f"http://127.0.0.1:{rude.getsockname()[1]}")
        with client, pytest.raises(UnavailableError, match="the connection broke"):
            client.predict(b"x")
