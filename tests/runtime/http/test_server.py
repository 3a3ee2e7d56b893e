import socket
import threading

import httpx
import pytest
from fastapi import FastAPI

from edvit.errors import ConfigError, PortInUseError
from edvit.runtime.http.server import HttpServer, bind


@pytest.fixture
def app():
    app = FastAPI()

    @app.get("/")
    def hello() -> str:
        return "hello"

    return app


def test_serves_until_closed(app):
    with HttpServer(app, bind("127.0.0.1", 0)) as server:
        assert httpx.get(server.url).json() == "hello"
    with pytest.raises(httpx.ConnectError):
        httpx.get(server.url)


def test_the_port_is_free_again_at_once(app):
    bound = bind("127.0.0.1", 0)
    port = bound.getsockname()[1]
    with HttpServer(app, bound) as server:
        httpx.get(server.url)
    with HttpServer(app, bind("127.0.0.1", port)) as server:
        assert httpx.get(server.url).json() == "hello"


def test_close_does_not_wait_for_a_request_that_hangs(app):
    begun, release = threading.Event(), threading.Event()

    @app.get("/hang")
    def hang() -> None:
        begun.set()
        release.wait(60)

    server = HttpServer(app, bind("127.0.0.1", 0)).start()
    asker = threading.Thread(target=lambda: httpx.get(f"{server.url}/hang", timeout=60), daemon=True)
    asker.start()
    assert begun.wait(10)
    server.close()
    assert not release.is_set()
    release.set()


def test_a_port_in_use():
    with bind("127.0.0.1", 0) as bound, pytest.raises(PortInUseError, match=r"in use; choose another --port"):
        bind("127.0.0.1", bound.getsockname()[1])


def test_a_port_in_use_is_named_by_the_option_that_gave_it():
    options = "--metrics-host and --metrics-port"
    with bind("127.0.0.1", 0) as bound, pytest.raises(PortInUseError, match=r"choose another --metrics-port, or"):
        bind("127.0.0.1", bound.getsockname()[1], options=options)
    with pytest.raises(ConfigError, match="check --metrics-host and --metrics-port"):
        bind("203.0.113.7", 0, options=options)


@pytest.mark.parametrize("host", ["no.such.host.invalid", "203.0.113.7", "\x00", "a" * 300])
def test_an_address_that_is_not_this_machines(host):
    with pytest.raises(ConfigError, match="check --host"):
        bind(host, 0)


def test_every_address_is_reported_as_one_that_can_be_typed(app):
    bound = bind("0.0.0.0", 0)
    server = HttpServer(app, bound)
    assert server.url == f"http://127.0.0.1:{bound.getsockname()[1]}"
    server.close()


@pytest.mark.skipif(not socket.has_ipv6, reason="needs IPv6")
def test_ipv6(app):
    try:
        bound = bind("::1", 0)
    except ConfigError:
        pytest.skip("this machine has no IPv6 loopback")
    with HttpServer(app, bound) as server:
        assert "[::1]" in server.url
        assert httpx.get(server.url).json() == "hello"
