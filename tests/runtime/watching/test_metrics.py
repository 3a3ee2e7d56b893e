"""The metrics of a gateway: what is counted, how it is written, and that nothing from outside breaks it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from prometheus_client import generate_latest

from edvit.runtime.gateway.device_state import DeviceStatus
from edvit.runtime.gateway.gather import Gathered
from edvit.runtime.gateway.hedging import CopiesAsked
from edvit.runtime.gateway.observer import Observed
from edvit.runtime.prediction import Prediction, Timings
from edvit.runtime.watching.metrics import MOST_CLASSES, NO_CLASS, OTHER_CLASSES, Metrics
from scraping import values_of
from tiny_bundle import write_tiny_bundle

TIMINGS = Timings(total_s=0.004, gather_s=0.003, slowest_run_s=0.002, fuse_s=0.001)
ODD = ['"quoted"', "back\\slash", "line\nend", "\u202egnp.exe", "🦊🏽‍❄️", "", "{a='b'} 1", "tab\tand\r", "\x00"]


def prediction(classes, indices, missing=()):
    logits = np.full((len(indices), len(classes)), -1, np.float32)
    logits[np.arange(len(indices)), indices] = 1
    return Prediction(logits=logits, classes=tuple(classes), missing=missing, timings=TIMINGS)


def samples(metrics):
    return values_of(generate_latest(metrics.registry).decode("utf-8"))


def value(metrics, name, **labels):
    return samples(metrics).get((name, frozenset(labels.items())))


def test_a_whole_prediction_is_counted_with_its_stages_and_classes():
    metrics = Metrics()
    gathered = Gathered(runs_s={0: 0.002, 1: 0.001})
    metrics.observe(Observed(waited_s=0.5, gathered=gathered, prediction=prediction("ab", [0, 1, 1])))
    assert value(metrics, "edvit_predictions_total", outcome="whole") == 1
    assert value(metrics, "edvit_predictions_total", outcome="degraded") == 0
    assert value(metrics, "edvit_predicted_total", **{"class": "a"}) == 1
    assert value(metrics, "edvit_predicted_total", **{"class": "b"}) == 2
    assert value(metrics, "edvit_stage_seconds_sum", stage="queue") == 0.5
    assert value(metrics, "edvit_stage_seconds_sum", stage="wire") == pytest.approx(0.001)
    assert value(metrics, "edvit_stage_seconds_sum", stage="fuse") == 0.001
    assert value(metrics, "edvit_submodel_seconds_sum", submodel="0") == 0.002
    assert value(metrics, "edvit_submodel_seconds_sum", submodel="1") == 0.001


def test_a_degraded_prediction_is_counted_as_such():
    metrics = Metrics()
    metrics.observe(Observed(prediction=prediction("ab", [0], missing=(1,))))
    assert value(metrics, "edvit_predictions_total", outcome="degraded") == 1
    assert value(metrics, "edvit_predictions_total", outcome="whole") == 0


def test_a_prediction_that_fails_is_counted_by_its_code_and_has_no_stages_but_those_it_reached():
    metrics = Metrics()
    metrics.observe(Observed(waited_s=0.25, code="unavailable"))
    assert value(metrics, "edvit_predictions_total", outcome="failed") == 1
    assert value(metrics, "edvit_predictions_failed_total", code="unavailable") == 1
    assert value(metrics, "edvit_stage_seconds_count", stage="queue") == 1
    assert value(metrics, "edvit_stage_seconds_count", stage="fuse") == 0


def test_a_run_that_a_device_reports_longer_than_its_answer_took_is_no_negative_time():
    metrics = Metrics()
    answer = prediction("ab", [0])
    impossible = Prediction(
        logits=answer.logits,
        classes=answer.classes,
        missing=(),
        timings=Timings(total_s=1.0, gather_s=0.5, slowest_run_s=0.75, fuse_s=0.0),
    )
    metrics.observe(Observed(prediction=impossible))
    assert value(metrics, "edvit_stage_seconds_sum", stage="wire") == 0.0


@pytest.mark.parametrize("name", ODD, ids=ascii)
def test_a_class_of_any_name_is_read_back_as_it_is(name):
    metrics = Metrics()
    metrics.observe(Observed(prediction=prediction([name, "plain"], [0, 0, 1])))
    assert value(metrics, "edvit_predicted_total", **{"class": name}) == 2
    assert value(metrics, "edvit_predicted_total", **{"class": "plain"}) == 1


def test_a_name_that_is_no_utf_8_does_not_break_the_scrape():
    metrics = Metrics()
    metrics.observe(Observed(prediction=prediction(["\ud800x", "plain"], [0])))
    assert value(metrics, "edvit_predicted_total", **{"class": "?x"}) == 1


def test_what_fits_no_class_is_counted_by_itself():
    metrics = Metrics()
    unsure = dataclasses.replace(prediction(["unknown", "b"], [0, 1]), unknown_below=1.0)
    metrics.observe(Observed(prediction=unsure))
    metrics.observe(Observed(prediction=prediction(["unknown", "b"], [0])))
    assert value(metrics, "edvit_predicted_total", **{"class": NO_CLASS}) == 2
    assert value(metrics, "edvit_predicted_total", **{"class": "unknown"}) == 1


def test_the_classes_that_are_counted_by_name_are_bounded():
    metrics = Metrics()
    names = [f"class-{i}" for i in range(MOST_CLASSES + 300)]
    for _ in range(2):
        metrics.observe(Observed(prediction=prediction(names, range(len(names)))))
    found = {dict(labels)["class"] for name, labels in samples(metrics) if name == "edvit_predicted_total"}
    assert len(found) == MOST_CLASSES + 1
    assert value(metrics, "edvit_predicted_total", **{"class": OTHER_CLASSES}) == 2 * 300
    assert value(metrics, "edvit_predicted_total", **{"class": "class-0"}) == 2


def test_a_request_is_counted_with_its_bytes_stages_and_code():
    metrics = Metrics()
    asked = {"seconds": 0.5, "received": 100, "sent": 30}
    metrics.answered(route="/predict", status=200, code=None, stages={"decode": 0.25}, **asked)
    metrics.answered(route="/predict", status=503, code="unavailable", stages={}, **asked)
    metrics.answered(route="/predict", status=None, code=None, stages={}, **asked)
    for status in ("2xx", "5xx", "none"):
        assert value(metrics, "edvit_http_requests_total", route="/predict", status=status) == 1
    assert value(metrics, "edvit_http_received_bytes_total", route="/predict") == 300
    assert value(metrics, "edvit_http_sent_bytes_total", route="/predict") == 90
    assert value(metrics, "edvit_http_refused_total", code="unavailable") == 1
    assert value(metrics, "edvit_http_request_seconds_count", route="/predict") == 3
    assert value(metrics, "edvit_stage_seconds_sum", stage="decode") == 0.25


def test_two_gateways_of_a_process_share_nothing():
    one, other = Metrics(), Metrics()
    one.observe(Observed(code="deadline"))
    assert value(one, "edvit_predictions_total", outcome="failed") == 1
    assert value(other, "edvit_predictions_total", outcome="failed") == 0


class Known:
    """A gateway that knows these devices."""

    copies_asked = CopiesAsked(late=3, ended=2)

    def __init__(self, bundle, *devices):
        self.bundle = bundle
        self._devices = devices

    def devices(self):
        return self._devices


def device(name, **changes):
    values = {
        "alive": True,
        "planned": (0,),
        "submodels": (0,),
        "memory_bytes": 5,
        "memory_limit_bytes": 10,
        "host": "here",
        "pid": 1,
        "problem": None,
    }
    return DeviceStatus(name=name, **{**values, **changes})


def test_the_fleet_and_the_bundle_are_read_at_each_scrape(tmp_path):
    bundle = write_tiny_bundle(tmp_path / "bundle")
    metrics = Metrics()
    known = [Known(bundle, device("a"), device("b", submodels=(), alive=False, state="offline", breaker="open"))]
    metrics.follow(lambda: known[-1])
    assert value(metrics, "edvit_device_state", device="a", state="ready") == 1
    assert value(metrics, "edvit_device_state", device="b", state="ready") == 0
    assert value(metrics, "edvit_device_state", device="b", state="offline") == 1
    assert value(metrics, "edvit_device_breaker", device="a", breaker="closed") == 1
    assert value(metrics, "edvit_device_breaker", device="b", breaker="open") == 1
    assert value(metrics, "edvit_device_memory_bytes", device="a") == 5
    assert value(metrics, "edvit_device_memory_limit_bytes", device="a") == 10
    assert value(metrics, "edvit_submodel_holders", submodel="0") == 1
    assert value(metrics, "edvit_submodel_holders", submodel="1") == 0
    assert value(metrics, "edvit_copies_asked_total", reason="late") == 3
    assert value(metrics, "edvit_bundle_info", digest=bundle.digest, fleet="local") == 1
    sha256 = bundle.manifest.submodels[1].model.sha256
    assert value(metrics, "edvit_model_info", model="sub-model 1", sha256=sha256) == 1
    known.append(Known(bundle, device("a", state="silent", breaker="suspected")))
    assert value(metrics, "edvit_device_state", device="a", state="ready") == 0
    assert value(metrics, "edvit_device_state", device="a", state="silent") == 1
    assert value(metrics, "edvit_device_breaker", device="a", breaker="suspected") == 1
    assert value(metrics, "edvit_device_state", device="b", state="offline") is None


@pytest.mark.parametrize("name", [*ODD, "\ud800"], ids=ascii)
def test_a_device_of_any_name_is_read_back_and_strangers_are_only_counted(tmp_path, name):
    metrics = Metrics()
    bundle = write_tiny_bundle(tmp_path / "bundle")
    metrics.follow(lambda: Known(bundle, device(name), device("stranger", in_fleet=False)))
    assert value(metrics, "edvit_device_state", device=name.replace("\ud800", "?"), state="ready") == 1
    assert value(metrics, "edvit_device_state", device="stranger", state="ready") is None
    assert value(metrics, "edvit_strangers") == 1


def test_the_memory_of_the_process_is_told():
    assert value(Metrics(), "process_resident_memory_bytes") > 0
