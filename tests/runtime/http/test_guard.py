"""Tokens, scopes, rates and TLS of the HTTP API, over real sockets."""

from __future__ import annotations

import contextlib
import logging
from datetime import datetime, timezone

import httpx
import numpy as np
import pytest

from edvit.errors import ConfigError, ForbiddenError, RateLimitError, UnauthorizedError, UnavailableError
from edvit.runtime.gateway.hedging import CopiesAsked
from edvit.runtime.http.app import create_app
from edvit.runtime.http.client import Client
from edvit.runtime.http.guard import FAILURES, SCOPE_OF, Guard, parse_rate
from edvit.runtime.http.server import HttpServer, HttpsFiles, bind
from edvit.runtime.http.uploads import Uploads
from edvit.runtime.keys.authority import make_authority
from edvit.runtime.keys.tokens import SCOPES, TokenList, add_token, remove_token
from edvit.runtime.predictor import LocalPredictor
from tiny_bundle import write_tiny_bundle

NOW = datetime.now(timezone.utc)
IMAGE = np.full((3, 16, 16), 77, dtype=np.uint8)
MANY = "100000/second"


class OneProcess(LocalPredictor):
    longest_s = 60.0
    replicas = 1
    copies_asked = CopiesAsked()

    def predict(self, images, *, since=None):
        del since
        return self.run(images)

    def devices(self):
        return ()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_tiny_bundle(tmp_path_factory.mktemp("guard") / "bundle", submodels=2, classes=4)


@pytest.fixture
def keys(tmp_path):
    make_authority(tmp_path, ["127.0.0.1"], NOW)
    return tmp_path


@pytest.fixture
def serve(bundle, keys):
    """Starts the API behind a guard, over HTTPS unless told otherwise; returns its URL."""
    opened = []

    def start(rate=MANY, https=True):
        uploads = Uploads(bundle.manifest.preprocessing)
        app = Guard(create_app(OneProcess(bundle), bundle.manifest, uploads), TokenList(keys), parse_rate(rate))
        files = HttpsFiles(keys / "gateway.crt", keys / "gateway.key") if https else None
        server = HttpServer(app, bind("127.0.0.1", 0), files)
        opened.extend([uploads, server])
        return server.start().url

    yield start
    for one in reversed(opened):
        one.close()


@pytest.fixture
def token(keys):
    return lambda *scopes: add_token(keys, "-".join(scopes), scopes, NOW)


def status(url, path, token=None, **headers):
    if token is not None:
        headers["authorization"] = f"Bearer {token}"
    return httpx.get(url + path, headers=headers, trust_env=False, timeout=60)


def test_the_client_asks_over_https_with_a_token_and_the_fleets_authority(serve, keys, token):
    url = serve()
    assert url.startswith("https://127.0.0.1:")
    with Client(url, token=token("predict", "watch"), ca=keys / "ca.crt") as client:
        assert client.predict_array(IMAGE).label
        assert client.fleet().name
        assert client.health().status == "not-ready"


def test_each_route_wants_its_scope_and_the_rest_wants_operate(serve, token):
    url = serve(https=False)
    has = {scope: token(scope) for scope in SCOPES}
    for path, needed in {**SCOPE_OF, "/deploy": "operate", "/docs2": "operate", "//predict": "operate"}.items():
        for scope in SCOPES:
            answer = status(url, path, has[scope])
            assert (answer.status_code == 403) == (scope != needed), (path, scope)
            if scope != needed:
                assert answer.json()["error"]["code"] == "forbidden"
                assert "insufficient_scope" in answer.headers["www-authenticate"]


def test_every_route_of_the_api_is_known_to_the_guard(bundle):
    with contextlib.closing(Uploads(bundle.manifest.preprocessing)) as uploads:
        paths = create_app(OneProcess(bundle), bundle.manifest, uploads).openapi()["paths"]
    assert set(SCOPE_OF) - {"/metrics"} <= set(paths)  # that page is not of the API


@pytest.mark.parametrize("path", ["/predict", "/health", "/fleet", "/", "/docs/../fleet", "/openapi.json2"])
def test_nothing_is_told_without_a_token(serve, token, path):
    url = serve(https=False)
    right = token("watch")
    for headers in (
        {},
        {"authorization": ""},
        {"authorization": "Bearer"},
        {"authorization": f"Basic {right}"},
        {"authorization": f"Bearer {right}x"},
        {"authorization": f"Bearer {right[:-1]}"},
    ):
        answer = status(url, path, **headers)
        assert answer.status_code in (401, 429)
        if answer.status_code == 401:
            assert answer.headers["www-authenticate"].startswith("Bearer")
            assert answer.json()["error"]["code"] == "unauthorized"


def test_a_refusal_is_logged_without_the_token_and_on_one_line(serve, token, caplog):
    url = serve(https=False)
    caplog.set_level(logging.WARNING)
    wrong = token("watch") + "x"
    status(url, "/fl%0Aeet%1B[31m", wrong)
    status(url, "/predict", token("watch"))
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert "127.0.0.1" in said[0]
    assert not any(part in text for text in said for part in (wrong, wrong[:-1], "\n", "\x1b"))
    assert "token watch lacks predict" in said[1]


def test_a_large_body_without_a_token_gets_its_answer_and_is_not_decoded(serve):
    answer = httpx.post(serve(https=False) + "/predict", content=bytes(1_500_000), trust_env=False, timeout=60)
    assert answer.status_code == 401


def test_a_token_that_is_taken_back_opens_nothing_from_then_on(serve, keys, token):
    url, known = serve(https=False), token("watch")
    assert status(url, "/fleet", known).status_code == 200
    remove_token(keys, "watch")
    assert status(url, "/fleet", known).status_code == 401


def test_a_token_that_asks_too_often_is_told_when_to_come_back_and_no_other(serve, token):
    url = serve("3/hour", https=False)
    busy, other = token("watch"), token("watch", "predict")
    answers = [status(url, "/fleet", busy) for _ in range(5)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 3600
    assert answers[-1].json()["error"]["code"] == "rate-limit"
    assert status(url, "/fleet", other).status_code == 200


def test_who_guesses_tokens_is_slowed_down_but_not_whoever_shares_its_address(keys, token, caplog):
    caplog.set_level(logging.WARNING)
    guard = Guard(None, TokenList(keys), parse_rate(MANY))
    right = token("watch")
    kinds = set()
    for _ in range(20 * FAILURES.amount):
        with pytest.raises((UnauthorizedError, RateLimitError)) as refused:
            guard.check("/fleet", "edvit_guess", "10.0.0.1")
        kinds.add(refused.type)
    guard.check("/fleet", right, "10.0.0.1")
    assert kinds == {UnauthorizedError, RateLimitError}
    assert len(caplog.records) < 20 * FAILURES.amount
    with pytest.raises(UnauthorizedError):
        guard.check("/fleet", "edvit_guess", "10.0.0.2")


def test_the_description_of_the_api_is_open(serve):
    url = serve(https=False)
    assert [status(url, path).status_code for path in ("/docs", "/openapi.json")] == [200, 200]


def test_the_client_raises_what_the_guard_says(serve, keys, token):
    url = serve()
    with Client(url, ca=keys / "ca.crt") as client, pytest.raises(UnauthorizedError, match="EDVIT_TOKEN"):
        client.health()
    with Client(url, ca=keys / "ca.crt", token=token("watch")) as client, pytest.raises(ForbiddenError):
        client.predict_array(IMAGE)


def test_a_certificate_that_is_not_trusted_is_told(serve):
    with Client(serve()) as client, pytest.raises(UnavailableError, match="EDVIT_CA"):
        client.health()


def test_an_authority_that_is_none_and_a_token_in_the_clear_are_refused(tmp_path):
    (tmp_path / "ca").write_text("no certificate")
    for ca in (tmp_path / "ca", tmp_path / "missing"):
        with pytest.raises(ConfigError, match="not a file with the certificate"):
            Client("https://127.0.0.1:1", ca=ca)
    with pytest.raises(ConfigError, match="unencrypted"):
        Client("http://192.0.2.1:8080", token="edvit_x")
    Client("http://127.0.0.1:8080", token="edvit_x").close()


def test_files_that_are_no_certificate_and_key_are_refused(keys):
    for files in (
        HttpsFiles(keys / "gateway.crt", keys / "ca.key"),
        HttpsFiles(keys / "missing", keys / "gateway.key"),
        HttpsFiles(keys / "gateway.key", keys / "gateway.key"),
    ):
        with bind("127.0.0.1", 0) as bound, pytest.raises(ConfigError, match="not a certificate"):
            HttpServer(lambda *_: None, bound, files)


@pytest.mark.parametrize("text", ["", "fast", "10", "-1/second", "10/fortnight"])
def test_rates_that_are_none(text):
    with pytest.raises(ConfigError, match="--rate-limit"):
        parse_rate(text)


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b'[{"name": "a", "sha',
        b"\xff\xfe",
        b"[" * 100_000,
        b'[{"name": "a", "sha256": 1, "scopes": [], "made": ""}]',
        None,
    ],
    ids=["empty", "torn", "bytes", "deep", "number", "folder"],
)
def test_a_damaged_list_of_tokens_is_told_to_the_operator_alone(serve, keys, token, caplog, damage):
    url = serve(https=False)
    right = token("watch")
    path = keys / "tokens.json"
    path.unlink()
    if damage is None:
        path.mkdir()
    else:
        path.write_bytes(damage)
    for given in (right, "wrong", right):
        answer = status(url, "/fleet", given)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")
        assert "tokens.json" not in answer.text
        assert str(keys) not in answer.text
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert str(path) in record.getMessage()
    assert record.exc_info is None
