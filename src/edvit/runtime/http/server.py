"""An HTTP server in a thread of this process, on a socket that is bound before anything else is started."""

from __future__ import annotations

import errno
import socket
import ssl
import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from edvit.errors import ConfigError, MissingExtraError, PortInUseError, UnavailableError

if TYPE_CHECKING:
    from starlette.types import ASGIApp

STARTUP_S = 10.0
BACKLOG = 128
"""Connections that the system keeps until they are accepted."""
ACCEPTED_AT_ONCE = 8
"""Connections that are accepted in one round of the event loop; each has a handle some rounds before it is refused."""
UNSENT_BYTES = 65_536
"""What the system keeps for a client that does not read; with more, a slow reader looks like one that does not read."""
CLOSE_S = 1.0
"""How long `close` lets requests that are under way go on, at most."""


def bind(host: str, port: int, *, options: str = "--host and --port") -> socket.socket:
    """A listening address, taken now. Port 0 takes any free one.

    Args:
        options: what a user has to check where there is no such address.

    Raises:
        PortInUseError: another program has it.
        ConfigError: there is no such address on this machine, or the port needs more rights.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
    except (OSError, OverflowError, UnicodeError):
        raise ConfigError(f"{host}:{port}: not an address to listen on; check {options}") from None
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UNSENT_BYTES)  # accepted connections have it too
        bound.bind(address)
        bound.listen(BACKLOG)
    except OSError as error:
        bound.close()
        if error.errno == errno.EADDRINUSE:
            raise PortInUseError(
                f"{host}:{port} is in use; choose another {options.rsplit(maxsplit=1)[-1]}, or stop what listens there"
            ) from None
        raise ConfigError(f"{host}:{port}: cannot listen there ({error.strerror}); check {options}") from None
    return bound


@dataclass(frozen=True)
class HttpsFiles:
    """PEM files of an HTTPS server: its certificate, with those that vouch for it, and its private key."""

    certificate: Path
    key: Path

    def check(self) -> None:
        """Raises ConfigError if they cannot be used, or do not belong together."""
        self.context()

    def context(self) -> ssl.SSLContext:
        """What a server agrees upon TLS with. Raises ConfigError as `check` does."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self.certificate, self.key, lambda: "")
        except OSError as error:
            raise ConfigError(
                f"{self.certificate}, {self.key}: not a certificate and its unencrypted private key ({error.strerror})"
            ) from None
        return context


class HttpServer:
    """Serves `app` on `bound` until `close`; a context manager.

    Args:
        https: the files to serve HTTPS with; None serves HTTP.
        connections: how many may be open at a time; None for as many as the process has handles for.

    Attributes:
        url: where it answers, e.g. `http://127.0.0.1:8080`.

    Raises:
        ConfigError: the files of `https` cannot be used.
    """

    def __init__(
        self, app: ASGIApp, bound: socket.socket, https: HttpsFiles | None = None, *, connections: int | None = None
    ) -> None:
        try:
            import uvicorn
        except ImportError:
            raise missing_serve_extra() from None
        host, port = bound.getsockname()[:2]
        reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        tls = None if https is None else https.context()
        scheme = "http" if tls is None else "https"
        self.url = f"{scheme}://[{reachable}]:{port}" if ":" in reachable else f"{scheme}://{reachable}:{port}"
        from edvit.runtime.http.connections import Connections, Followed, most_connections, protocol_for

        followed = Connections(connections or most_connections())
        self._requests = Followed(app, followed)
        config = uvicorn.Config(
            self._requests,
            http=protocol_for(followed, tls),
            ws="none",
            backlog=ACCEPTED_AT_ONCE,
            log_config=None,  # it goes the way of every other log
            log_level="error",
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=1,
            server_header=False,
            timeout_keep_alive=30,
        )
        self._server = uvicorn.Server(config)
        self._bound = bound
        self._thread = threading.Thread(target=self._server.run, args=([bound],), name="edvit-http", daemon=True)

    def start(self) -> HttpServer:
        """Raises UnavailableError when the server does not come up."""
        self._thread.start()
        for _ in range(int(STARTUP_S / 0.01)):
            if self._server.started:
                self._bound.listen(BACKLOG)  # uvicorn has one number for both, and has set the other
                return self
            if not self._thread.is_alive():
                break
            self._thread.join(0.01)
        raise UnavailableError(f"the HTTP server at {self.url} did not start")

    def close(self) -> None:
        """Stop listening, let requests under way end, answer those that take longer than `CLOSE_S` with 503."""
        self._requests.end(CLOSE_S)
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join(CLOSE_S)
            self._server.force_exit = True
            self._thread.join(0.5)
        self._bound.close()

    def __enter__(self) -> HttpServer:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def missing_serve_extra() -> MissingExtraError:
    """What to tell a user whose installation lacks FastAPI, uvicorn or httpx."""
    return MissingExtraError('this command needs the serve extra: pip install "edvit[serve]"')
