"""Every HTTP request is counted, by its route and never by what a client makes up; `/metrics` shows it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from datetime import datetime, timezone

import httpx
import numpy as np
import pytest
from starlette.responses import PlainTextResponse

from edvit.runtime.http.body import NPY, to_npy
from edvit.runtime.http.guard import Guard, parse_rate
from edvit.runtime.http.request_log import RequestLog
from edvit.runtime.keys.tokens import SCOPES, TokenList, add_token
from edvit.runtime.watching.watching import NO_METRICS, MetricsAt, Watching
from scraping import Scrape, values_of
from waiting import eventually

BODY = to_npy(np.full((3, 16, 16), 77, dtype=np.uint8))
BATCH = to_npy(np.full((5, 3, 16, 16), 77, dtype=np.uint8))


def ask(url, method, path, **options):
    return httpx.request(method, url + path, trust_env=False, timeout=60, **options)


def predict(service, body=BODY):
    return ask(service.url, "POST", "/predict", content=body, headers={"content-type": NPY})


def scrape(service):
    return Scrape(f"{service.url}/metrics")


def scrape_until(service, is_there):
    """A scrape for which `is_there` holds: a request is counted just after its answer was sent."""
    found = []

    def look():
        found.append(scrape(service))
        return is_there(found[-1])

    eventually(look, 60)
    return found[-1]


def test_a_prediction_is_counted_by_route_status_bytes_stages_and_class(served):
    before = scrape(served)
    answers = [predict(served), predict(served, BATCH)]
    assert [answer.status_code for answer in answers] == [200, 200]
    requests = {"route": "/predict", "status": "2xx"}
    count = before("edvit_http_requests_total", **requests) + 2
    after = scrape_until(served, lambda now: now("edvit_http_requests_total", **requests) == count)

    def grown(name, **labels):
        return after(name, **labels) - before(name, **labels)

    assert grown("edvit_http_received_bytes_total", route="/predict") == len(BODY) + len(BATCH)
    assert grown("edvit_http_sent_bytes_total", route="/predict") == sum(len(answer.content) for answer in answers)
    assert grown("edvit_http_request_seconds_count", route="/predict") == 2
    for stage in ("decode", "queue", "wire", "fuse"):
        assert grown("edvit_stage_seconds_count", stage=stage) == 2, stage
    for submodel in "01":
        assert grown("edvit_submodel_seconds_count", submodel=submodel) == 2
    assert grown("edvit_predictions_total", outcome="whole") == 2
    label = answers[0].json()["label"]
    assert grown("edvit_predicted_total", **{"class": label}) == 6


def test_the_state_of_the_devices_and_the_bundle_are_shown(served):
    now = scrape(served)
    for name in served.devices:
        assert now("edvit_device_state", device=name, state="ready") == 1
        assert now("edvit_device_breaker", device=name, breaker="closed") == 1
    assert now.labels("edvit_bundle_info", "digest") == {served.gateway.bundle.digest}
    assert now.labels("edvit_model_info", "model") == {"sub-model 0", "sub-model 1", "fusion"}


def test_what_is_refused_is_counted_by_its_code(served):
    before = scrape(served)
    assert predict(served, b"no array").json()["error"]["code"] == "bad-image"
    count = before("edvit_http_refused_total", code="bad-image") + 1
    after = scrape_until(served, lambda now: now("edvit_http_refused_total", code="bad-image") == count)
    refused = {"route": "/predict", "status": "4xx"}
    assert after("edvit_http_requests_total", **refused) == before("edvit_http_requests_total", **refused) + 1


def test_a_path_that_a_client_makes_up_is_no_label(served):
    before = scrape(served)
    for i in range(20):
        assert ask(served.url, "GET", f"/made-up-{i}").status_code == 404
    count = before("edvit_http_requests_total", route="other", status="4xx") + 20
    after = scrape_until(served, lambda now: now("edvit_http_requests_total", route="other", status="4xx") == count)
    assert after.labels("edvit_http_requests_total", "route") <= {"/predict", "/metrics", "/health", "/fleet", "other"}


def test_routes_are_told_apart(served):
    ask(served.url, "GET", "/health")
    ask(served.url, "GET", "/fleet")
    routes = {"/health", "/fleet", "/metrics"}
    scrape_until(served, lambda now: routes <= now.labels("edvit_http_requests_total", "route"))


def test_a_port_of_its_own_shows_metrics_and_nothing_else(served):
    assert served.metrics_url.startswith("http://127.0.0.1:")
    assert Scrape(f"{served.metrics_url}/metrics")("edvit_submodel_holders", submodel="0") == 1
    answer = ask(served.metrics_url, "POST", "/predict", content=BODY)
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "not-found"


def test_metrics_are_only_read(served):
    assert ask(served.url, "HEAD", "/metrics").status_code == 200
    assert ask(served.url, "POST", "/metrics").json()["error"]["code"] == "method-not-allowed"


async def plain(scope, receive, send):
    await PlainTextResponse("plain")(scope, receive, send)


def over(app, path, **headers):
    async def go():
        transport = httpx.ASGITransport(app, client=("192.0.2.7", 1234))
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            return await client.get(path, headers=headers)

    return asyncio.run(go())


def test_without_being_asked_for_nothing_is_shown_or_put_before_the_api():
    watching = Watching(NO_METRICS)
    assert watching.metrics is None
    assert watching.observers == ()
    assert watching.with_page(plain) is plain
    assert watching.around(plain) is plain


def test_with_a_port_of_its_own_alone_the_api_has_no_such_route():
    watching = Watching(MetricsAt(port=0))
    assert watching.metrics is not None
    assert watching.with_page(plain) is plain


def test_prometheus_is_not_loaded_until_it_is_asked_for():
    code = "import sys, edvit.cli.serve, edvit.runtime.service; print('prometheus_client' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "False"


def test_the_route_wants_a_token_with_scope_watch_and_refusals_are_counted(tmp_path):
    watching = Watching(MetricsAt(route=True))
    guard = Guard(watching.with_page(plain), TokenList(tmp_path), parse_rate("1000/second"))
    app = RequestLog(watching.around(guard))
    now = datetime.now(timezone.utc)
    assert over(app, "/metrics").status_code == 401
    for scope in SCOPES:
        token = add_token(tmp_path, scope, [scope], now)
        answer = over(app, "/metrics", authorization=f"Bearer {token}")
        assert answer.status_code == (200 if scope == "watch" else 403), scope
    token = add_token(tmp_path, "again", ["watch"], now)
    values = values_of(over(app, "/metrics", authorization=f"Bearer {token}").text)
    assert values["edvit_http_refused_total", frozenset({("code", "unauthorized")})] == 1
    assert values["edvit_http_refused_total", frozenset({("code", "forbidden")})] == len(SCOPES) - 1


@pytest.mark.parametrize("accept", ["application/openmetrics-text; version=x\r", "*/*", "text/plain;version=9.9.9", ""])
def test_a_client_does_not_choose_what_the_answer_says_of_itself(accept):
    app = Watching(MetricsAt(route=True)).with_page(plain)
    answer = over(app, "/metrics", accept=accept)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"


def test_a_request_whose_client_goes_is_counted_as_such():
    async def gone(scope, receive, send):
        raise ConnectionResetError

    watching = Watching(MetricsAt(route=True))
    with pytest.raises(ConnectionResetError):
        over(RequestLog(watching.around(gone)), "/predict")
    values = values_of(over(watching.with_page(plain), "/metrics").text)
    assert values["edvit_http_requests_total", frozenset({("route", "other"), ("status", "none")})] == 1
