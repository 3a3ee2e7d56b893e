"""One span a request, one child span a device, and where OpenTelemetry's variables say that they are sent."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import logging
import subprocess
import sys
import threading
import time

import httpx
import pytest
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from starlette.responses import PlainTextResponse

from edvit.runtime.gateway.gather import Gathered
from edvit.runtime.gateway.observer import Observed
from edvit.runtime.http.app import create_app
from edvit.runtime.http.body import NPY, to_npy
from edvit.runtime.http.request_log import RequestLog
from edvit.runtime.http.server import HttpServer, bind
from edvit.runtime.http.uploads import Uploads
from edvit.runtime.local import serve_locally
from edvit.runtime.watching.traces import Traces
from edvit.runtime.watching.watching import NO_METRICS, Watching, wants_traces
from fleet_in_memory import memory_fleet, some_images
from tiny_bundle import write_tiny_bundle
from waiting import eventually

PARENT = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"00-{PARENT}-00f067aa0ba902b7-01"
ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    for name in ("OTEL_SDK_DISABLED", "OTEL_TRACES_EXPORTER", ENDPOINT, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def spans():
    return InMemorySpanExporter()


@pytest.fixture
def traces(spans):
    with contextlib.closing(Traces(SimpleSpanProcessor(spans))) as traces:
        yield traces


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_tiny_bundle(tmp_path_factory.mktemp("traces") / "bundle", submodels=2, classes=4)


@pytest.fixture
def fleet(bundle, tmp_path):
    with memory_fleet(bundle, tmp_path / "cache") as fleet:
        yield fleet


def names(bundle):
    return [device.name for device in bundle.manifest.plan.fleet.devices]


def test_a_request_has_a_span_and_each_device_one_within_it(fleet, bundle, spans, traces):
    for name in names(bundle):
        fleet.device(name)
    gateway = fleet.gateway(observers=[traces])
    spans.clear()
    with contextlib.closing(Uploads(bundle.manifest.preprocessing)) as uploads:
        app = RequestLog(traces.around(create_app(gateway, bundle.manifest, uploads)))
        with HttpServer(app, bind("127.0.0.1", 0)) as server:
            answer = httpx.post(
                f"{server.url}/predict",
                content=to_npy(some_images(bundle)),
                headers={
                    "content-type": NPY,
                    "x-request-id": "camera-7",
                    "traceparent": f"00-{PARENT}-00f067aa0ba902b7-01",
                },
                trust_env=False,
                timeout=60,
            )
            assert answer.status_code == 200
            eventually(lambda: len(spans.get_finished_spans()) == 3, 60)
    *devices, request = sorted(spans.get_finished_spans(), key=lambda span: span.kind == SpanKind.SERVER)
    assert (request.name, request.kind) == ("POST /predict", SpanKind.SERVER)
    assert request.attributes["http.response.status_code"] == 200
    assert request.attributes["http.route"] == "/predict"
    assert request.attributes["edvit.request"] == "camera-7"
    assert request.attributes["edvit.degraded"] is False
    assert request.context.trace_id == int(PARENT, 16)
    assert sorted(span.attributes["edvit.device"] for span in devices) == sorted(names(bundle))
    assert sorted(span.attributes["edvit.submodels"] for span in devices) == [(0,), (1,)]
    for span in devices:
        assert (span.name, span.kind) == ("infer", SpanKind.CLIENT)
        assert span.parent.span_id == request.context.span_id
        assert span.context.trace_id == request.context.trace_id
        assert span.attributes["edvit.given"] == span.attributes["edvit.submodels"]
        assert span.status.status_code is StatusCode.UNSET
        assert span.start_time <= span.end_time


def test_a_prediction_that_came_by_no_http_has_a_span_of_its_own(fleet, bundle, spans, traces):
    for name in names(bundle):
        fleet.device(name)
    gateway = fleet.gateway(observers=[traces])
    gateway.predict(some_images(bundle))
    *devices, whole = spans.get_finished_spans()
    assert whole.name == "predict"
    assert whole.parent is None
    assert {span.parent.span_id for span in devices} == {whole.context.span_id}
    assert len(devices) == 2


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"silent": {"b"}}, "silent"),
        ({"wrong": {"b"}}, "wrong"),
        ({"ended": {"b"}}, "ended"),
        ({"late": True}, "late"),
        ({}, "not waited for"),
    ],
)
def test_a_device_that_gave_not_all_has_a_span_that_says_why(spans, traces, changes, why):
    now = time.monotonic()
    gathered = Gathered(
        asked={"a": {0}, "b": {1, 2}},
        given={"a": {0}, "b": {2}},
        first_asked_at={"a": now - 3, "b": now - 2},
        last_given_at={"a": now - 1, "b": now - 1},
        **changes,
    )
    traces.observe(Observed(started_at=now - 4, gathered=gathered))
    good, bad, whole = spans.get_finished_spans()
    assert good.status.status_code is StatusCode.UNSET
    assert (good.end_time - good.start_time) / 1e9 == pytest.approx(2, abs=1)
    assert (bad.status.status_code, bad.status.description) == (StatusCode.ERROR, why)
    assert (bad.attributes["edvit.submodels"], bad.attributes["edvit.given"]) == ((1, 2), (2,))
    assert whole.status.status_code is StatusCode.UNSET
    assert whole.start_time <= good.start_time <= bad.start_time


def test_a_prediction_that_fails_is_an_error(fleet, bundle, spans, traces):
    gateway = fleet.gateway(observers=[traces], ready=False)
    with pytest.raises(Exception, match="no device answered"):
        gateway.predict(some_images(bundle))
    (whole,) = spans.get_finished_spans()
    assert (whole.status.status_code, whole.status.description) == (StatusCode.ERROR, "unavailable")


def ask(app, method="GET", **headers):
    async def go():
        transport = httpx.ASGITransport(app, client=("192.0.2.7", 1234))
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            return await client.request(method, "/made-up", headers=headers)

    return asyncio.run(go())


async def plain(scope, receive, send):
    await PlainTextResponse("plain")(scope, receive, send)


@pytest.mark.parametrize("parent", ["", "00-zz-00-01", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "\xff", "00-" * 1000])
def test_a_header_that_names_no_trace_begins_a_new_one(spans, traces, parent):
    assert ask(traces.around(plain), traceparent=parent.encode("latin-1")).status_code == 200
    (span,) = spans.get_finished_spans()
    assert span.parent is None


def test_what_a_client_makes_up_names_no_span(spans, traces):
    ask(traces.around(plain), method="X-MADE-UP")
    (span,) = spans.get_finished_spans()
    assert span.name == "_OTHER other"


def test_a_defect_marks_the_span_without_what_it_says(spans, traces):
    async def defect(scope, receive, send):
        raise ValueError("what the client has sent")

    with pytest.raises(ValueError, match="sent"):
        ask(traces.around(defect))
    (span,) = spans.get_finished_spans()
    assert span.status.status_code is StatusCode.ERROR
    assert not span.events
    assert "sent" not in str(span.to_json())


def test_the_process_keeps_its_own_provider(spans, traces):
    before = trace.get_tracer_provider()
    ask(traces.around(plain))
    assert trace.get_tracer_provider() is before
    assert len(spans.get_finished_spans()) == 1


@pytest.mark.parametrize(
    ("variables", "wanted"),
    [
        ({}, False),
        ({ENDPOINT: "http://127.0.0.1:4318"}, True),
        ({ENDPOINT: ""}, False),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:4318/v1/traces"}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_TRACES_EXPORTER": "none", ENDPOINT: "http://127.0.0.1:4318"}, False),
        ({"OTEL_TRACES_EXPORTER": "console", ENDPOINT: "http://127.0.0.1:4318"}, False),
        ({"OTEL_SDK_DISABLED": "True", ENDPOINT: "http://127.0.0.1:4318"}, False),
    ],
)
def test_the_standard_variables_say_whether_traces_are_sent(variables, wanted):
    assert wants_traces(variables) is wanted


def test_a_protocol_that_is_not_spoken_is_said_once_and_nothing_is_sent(monkeypatch, caplog):
    monkeypatch.setenv(ENDPOINT, "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    with caplog.at_level(logging.WARNING):
        assert Watching(NO_METRICS).observers == ()
    assert "no traces are sent" in caplog.text


def test_a_missing_extra_is_said_and_the_gateway_serves(monkeypatch, caplog):
    monkeypatch.setenv(ENDPOINT, "http://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "edvit.runtime.watching.traces", None)
    with caplog.at_level(logging.WARNING):
        assert Watching(NO_METRICS).observers == ()
    assert 'pip install "edvit[otel]"' in caplog.text


class Collector(http.server.BaseHTTPRequestHandler):
    """Takes traces as OTLP over HTTP."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.taken.append(ExportTraceServiceRequest.FromString(body))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def collector():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector) as server:
        server.taken = []
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_gateway_sends_its_traces_to_where_the_variables_say(monkeypatch, bundle):
    with collector() as taken:
        monkeypatch.setenv(ENDPOINT, f"http://127.0.0.1:{taken.server_port}")
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        with serve_locally(bundle, deadline_s=60.0) as service:
            body = to_npy(some_images(bundle))
            httpx.post(
                f"{service.url}/predict", content=body, headers={"content-type": NPY}, trust_env=False, timeout=60
            ).raise_for_status()

            def sent():
                return [
                    (resource.resource, span)
                    for request in taken.taken
                    for resource in request.resource_spans
                    for scope in resource.scope_spans
                    for span in scope.spans
                ]

            eventually(lambda: {"POST /predict", "infer"} <= {span.name for _, span in sent()}, 60)
            resource, _ = sent()[0]
            named = {one.key: one.value.string_value for one in resource.attributes}
            assert named["service.name"] == "edvit-gateway"


def test_a_collector_that_does_not_answer_does_not_hold_up_the_end():
    class Stuck(SpanProcessor):
        let_go = threading.Event()

        def shutdown(self):
            self.let_go.wait()

    traces = Traces(Stuck())
    traces.close()
    assert not Stuck.let_go.is_set()
    Stuck.let_go.set()


def test_opentelemetry_is_not_loaded_until_it_is_asked_for():
    code = "import sys, edvit.cli.serve, edvit.runtime.service; print('opentelemetry' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "False"
