"""A client of the gateway's HTTP API that raises the same errors as the gateway does."""

from __future__ import annotations

import ssl
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

from pydantic import BaseModel, ValidationError

from edvit.errors import ConfigError, DeadlineError, UnavailableError, WireError, error_from
from edvit.inputs.preprocess import UInt8
from edvit.runtime.exposure import is_loopback
from edvit.runtime.http.answers import DeployAnswer, ErrorAnswer, FleetAnswer, HealthAnswer, Predicted, PredictedBatch
from edvit.runtime.http.body import BUNDLE, FILE, NPY, to_npy
from edvit.runtime.http.server import missing_serve_extra

if TYPE_CHECKING:
    import httpx

A = TypeVar("A", bound=BaseModel)

NOT_READY = 503
"""The status of `/health` while no prediction is possible."""


class Client:
    """Talks to one gateway over one kept-alive connection; a context manager. Not shared between threads.

    Args:
        url: of the gateway, http or https.
        timeout_s: how long an answer may take, seconds.
        token: what `edvit keys token` printed; None where the gateway wants none.
        ca: PEM file with the authority that the gateway's certificate is of; None for those that the system trusts.

    Raises:
        ConfigError: `url` is not an http or https address, `ca` is no such file, or the token would travel unencrypted.
        MissingExtraError: httpx is not installed.

    Every method raises what the gateway raised (`ImageError`, `TooLargeError`, `DeadlineError` ...),
    `UnavailableError` when nothing answers there, and `WireError` when what answers is no gateway.
    """

    def __init__(self, url: str, *, timeout_s: float = 30.0, token: str | None = None, ca: Path | None = None) -> None:
        try:
            import httpx
        except ImportError:
            raise missing_serve_extra() from None
        try:
            parsed = httpx.URL(url)
        except httpx.InvalidURL:
            parsed = httpx.URL()
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise ConfigError(f"{url}: not a gateway's address; it looks like http://HOST:8080")
        if token is not None and parsed.scheme == "http" and not is_loopback(parsed.host):
            raise ConfigError(f"{url}: the token would travel unencrypted; use https")
        self.url = url.rstrip("/")
        # Straight to the gateway: a proxy of the environment is meant for the internet, not for the local network.
        self._http = httpx.Client(
            base_url=self.url,
            timeout=timeout_s,
            trust_env=False,
            verify=_trust(ca) if parsed.scheme == "https" else False,
            headers={} if token is None else {"authorization": f"Bearer {token}"},
        )

    def predict(self, file: bytes) -> Predicted:
        """Classify one image or sound, given as the bytes of a file."""
        return self._post(file, FILE, Predicted)

    def predict_array(self, image: UInt8) -> Predicted:
        """Classify one image, uint8 `[channels, height, width]`."""
        return self._post(to_npy(image), NPY, Predicted)

    def predict_batch(self, images: UInt8) -> PredictedBatch:
        """Classify a batch, uint8 `[batch, channels, height, width]`."""
        return self._post(to_npy(images), NPY, PredictedBatch)

    def health(self) -> HealthAnswer:
        """Whether predictions are possible; a gateway without devices is an answer, not an error."""
        response = self._request("GET", "/health")
        return self._read(response if response.status_code == NOT_READY else self._checked(response), HealthAnswer)

    def fleet(self) -> FleetAnswer:
        """The devices and what they hold."""
        return self._read(self._checked(self._request("GET", "/fleet")), FleetAnswer)

    def deploy(
        self, body: bytes | Iterable[bytes], size: int, *, timeout_s: float, check: bool = False
    ) -> DeployAnswer:
        """Send a new bundle, as `edvit.runtime.deploy.transfer` packs it.

        Args:
            body: the whole bundle; its head alone with `check`.
            size: length of the body, bytes.
            timeout_s: seconds that devices may take to load it, and the gateway to check it.
            check: ask whether the bundle would be taken, and send no more than its head.
        """
        query = f"?timeout_s={timeout_s:g}" + ("&check" if check else "")
        headers = {"content-type": BUNDLE, "content-length": str(size)}
        response = self._request("POST", f"/deploy{query}", content=body, headers=headers, timeout_s=timeout_s)
        return self._read(self._checked(response), DeployAnswer)

    def deploy_state(self) -> DeployAnswer:
        """How far the deploy is."""
        return self._read(self._checked(self._request("GET", "/deploy")), DeployAnswer)

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _post(self, content: bytes, media_type: str, answer: type[A]) -> A:
        response = self._request("POST", "/predict", content=content, headers={"content-type": media_type})
        return self._read(self._checked(response), answer)

    def _request(
        self,
        method: str,
        path: str,
        *,
        content: bytes | Iterable[bytes] | None = None,
        headers: dict[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> httpx.Response:
        import httpx

        timeout = self._http.timeout if timeout_s is None else httpx.Timeout(timeout_s)
        try:
            return self._http.request(method, path, content=content, headers=headers, timeout=timeout)
        except httpx.TimeoutException:
            raise DeadlineError(f"{self.url}: no answer in time; is the gateway overloaded?") from None
        except httpx.ConnectError as error:
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                raise UnavailableError(
                    f"{self.url}: its certificate is not trusted; give its authority's file by --ca or EDVIT_CA, and "
                    "an address that the certificate names"
                ) from None
            raise UnavailableError(
                f"{self.url}: nothing answers there; start `edvit serve`, or check the URL"
            ) from None
        except httpx.HTTPError as error:
            raise UnavailableError(f"{self.url}: the connection broke ({type(error).__name__}); try again") from None

    def _checked(self, response: httpx.Response) -> httpx.Response:
        if response.is_success:
            return response
        error = self._read(response, ErrorAnswer).error
        raise error_from(error.code, error.message)

    def _read(self, response: httpx.Response, answer: type[A]) -> A:
        try:
            return answer.model_validate_json(response.content)
        except ValidationError:
            raise WireError(
                f"{self.url}: what answers there is no edvit gateway (status {response.status_code}); check the URL"
            ) from None


def _trust(ca: Path | None) -> ssl.SSLContext:
    """The authorities that a gateway's certificate may be of. Raises ConfigError."""
    try:
        return ssl.create_default_context(cafile=ca)
    except OSError:
        raise ConfigError(f"{ca}: not a file with the certificate of an authority") from None
