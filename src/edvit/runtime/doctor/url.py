"""Whether a gateway's HTTP API answers, with what a device has: the standard library."""

from __future__ import annotations

import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlsplit

from edvit.runtime.doctor.check import Check, bad, good, warning
from edvit.runtime.doctor.machine import check_clocks
from edvit.runtime.exposure import is_loopback

ANSWER_S = 5.0
MOST_BYTES = 1_000_000


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Nobody who answers in the gateway's place sends the token elsewhere."""

    def redirect_request(self, *_: object) -> None:
        return None


def check_url(url: str, *, token: str | None, ca: Path | None) -> list[Check]:
    """Ask `/health`, and compare clocks.

    Args:
        url: of the gateway, http or https.
        token: what `edvit keys token` printed.
        ca: the authority that the gateway's certificate is of; None for those that the system trusts.
    """
    try:
        parts = urlsplit(url)
        host = parts.hostname if parts.port != 0 else None
    except ValueError:
        host = None
    if host is None or parts.scheme not in ("http", "https"):
        return [bad("url", f"{url} is no gateway's address", "write it as http://HOST:8080")]
    if token is not None and parts.scheme == "http" and not is_loopback(host):
        return [bad("url", f"{url}: the token would travel unencrypted", "use https")]
    try:
        trust = ssl.create_default_context(cafile=ca)
    except OSError:
        return [bad("url", f"{ca} is not a file with a certificate", "give the gateway's ca.crt by --ca")]
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=trust), _NoRedirect()
    )
    headers = {} if token is None else {"authorization": f"Bearer {token}"}
    try:
        with opener.open(urllib.request.Request(f"{url.rstrip('/')}/health", headers=headers), timeout=ANSWER_S) as got:
            status, said, body = got.status, got.headers, got.read(MOST_BYTES)
    except urllib.error.HTTPError as error:
        with error:
            status, said, body = error.code, error.headers, error.read(MOST_BYTES)
    except urllib.error.URLError as error:
        return [_unreachable(url, error.reason)]
    except (OSError, HTTPException, ValueError) as error:
        return [_unreachable(url, error)]
    return [_health(url, status, body, token is not None), *_clocks(said)]


def _unreachable(url: str, why: object) -> Check:
    if isinstance(why, ssl.SSLCertVerificationError):
        advice = "give the gateway's ca.crt by --ca or EDVIT_CA, and an address that its certificate names"
        return bad("url", f"{url}: its certificate is refused: {why.verify_message}", advice)
    reason = getattr(why, "strerror", None) or str(why)
    return bad("url", f"{url}: no answer ({reason})", "start `edvit serve`, or correct --url")


def _health(url: str, status: int, body: bytes, with_token: bool) -> Check:
    if status == 401:
        advice = "ask its operator for another token" if with_token else "set EDVIT_TOKEN"
        wants = "does not know the token" if with_token else "wants a token"
        return warning("url", f"{url}: a gateway that {wants}", advice)
    if status == 403:
        return warning(
            "url", f"{url}: the token lacks the scope watch", "`edvit keys token NAME --scope predict,watch`"
        )
    try:
        answer = json.loads(body)
        state, missing = answer["status"], answer["missing"]
    except (ValueError, KeyError, TypeError):
        return bad("url", f"{url}: what answers there is no edvit gateway (status {status})", "correct --url")
    if state == "ready":
        return good("url", f"{url}: the gateway is ready")
    lacking = ", ".join(map(str, missing))
    return warning("url", f"{url}: the gateway is {state}; no device has sub-model {lacking}", "start the devices")


def _clocks(headers: Mapping[str, str]) -> list[Check]:
    try:
        theirs = parsedate_to_datetime(headers.get("date", ""))
    except ValueError:
        return []
    return [check_clocks(theirs, datetime.now(timezone.utc))]
