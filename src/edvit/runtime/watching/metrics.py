"""What a gateway counts of its requests, as Prometheus metrics in a registry of its own."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector

from edvit.runtime.watching.fleet_state import FleetState
from edvit.runtime.watching.label import label

if TYPE_CHECKING:
    from collections.abc import Callable

    from edvit.runtime.gateway.gateway import Gateway
    from edvit.runtime.gateway.observer import Observed
    from edvit.runtime.prediction import Prediction

SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
"""Upper bounds of the buckets of every histogram, seconds."""

MOST_CLASSES = 200
"""Classes that are counted by name, over all bundles that are served; later ones are counted together."""
OTHER_CLASSES = "(other classes)"
NO_CLASS = "(unknown)"

NO_STATUS = "none"
"""A request that ended before it was answered: its client has gone."""


class Metrics:
    """The metrics of one gateway, over every bundle that it serves. Thread-safe; an `Observer`.

    Attributes:
        registry: what a scrape collects.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._requests = Counter("edvit_http_requests", "HTTP requests.", ["route", "status"], registry=self.registry)
        self._seconds = Histogram(
            "edvit_http_request_seconds",
            "From the headers of an HTTP request to the end of its answer.",
            ["route"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self._received = Counter(
            "edvit_http_received_bytes", "Bytes of the bodies of HTTP requests.", ["route"], registry=self.registry
        )
        self._sent = Counter(
            "edvit_http_sent_bytes", "Bytes of the bodies of HTTP answers.", ["route"], registry=self.registry
        )
        self._refused = Counter(
            "edvit_http_refused",
            "HTTP requests that were refused, by the error's code.",
            ["code"],
            registry=self.registry,
        )
        self._stages = Histogram(
            "edvit_stage_seconds",
            "Stages of a prediction: decode, queue, wire (the devices' answers less the slowest run), fuse.",
            ["stage"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self._runs = Histogram(
            "edvit_submodel_seconds",
            "Run of a sub-model, as its device measures it.",
            ["submodel"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self._predictions = Counter(
            "edvit_predictions",
            "Predictions over every protocol: whole, degraded, or failed.",
            ["outcome"],
            registry=self.registry,
        )
        self._failed = Counter(
            "edvit_predictions_failed",
            "Predictions over every protocol that failed in the gateway, by the code of the error.",
            ["code"],
            registry=self.registry,
        )
        self._classes = Counter(
            "edvit_predicted",
            f"Images or sounds by their most probable class; the first {MOST_CLASSES} classes by name.",
            ["class"],
            registry=self.registry,
        )
        self._named: set[str] = set()
        self._naming = threading.Lock()
        for outcome in ("whole", "degraded", "failed"):
            self._predictions.labels(outcome)
        for stage in ("decode", "queue", "wire", "fuse"):
            self._stages.labels(stage)

    def follow(self, current: Callable[[], Gateway]) -> None:
        """Show also the state of the fleet and the bundle of `current()`, as they are at each scrape."""
        self.registry.register(FleetState(current))

    # --- what is observed ------------------------------------------------------------------------------

    def observe(self, observed: Observed) -> None:
        """Count a prediction."""
        if observed.waited_s is not None:
            self._stages.labels("queue").observe(observed.waited_s)
        if observed.code is not None:
            self._predictions.labels("failed").inc()
            self._failed.labels(observed.code).inc()
        if observed.gathered is not None:
            for submodel, seconds in observed.gathered.runs_s.items():
                self._runs.labels(str(submodel)).observe(seconds)
        if observed.prediction is not None:
            self._predicted(observed.prediction)

    def _predicted(self, prediction: Prediction) -> None:
        timings = prediction.timings
        self._predictions.labels("degraded" if prediction.degraded else "whole").inc()
        # A device's clock may run a little faster than ours: a run cannot take longer than the answer to it.
        self._stages.labels("wire").observe(max(0.0, timings.gather_s - timings.slowest_run_s))
        self._stages.labels("fuse").observe(timings.fuse_s)
        for name, unknown in zip(prediction.labels, prediction.unknown, strict=True):
            self._classes.labels(NO_CLASS if unknown else self._class(name)).inc()

    def _class(self, name: str) -> str:
        if name not in self._named:
            with self._naming:
                if name not in self._named and len(self._named) >= MOST_CLASSES:
                    return OTHER_CLASSES
                self._named.add(name)
        return label(name)

    def answered(
        self,
        *,
        route: str,
        status: int | None,
        seconds: float,
        received: int,
        sent: int,
        code: str | None,
        stages: dict[str, float],
    ) -> None:
        """Count an HTTP request.

        Args:
            route: what is asked, of a bounded number of values.
            status: of the answer; None where there was none.
            seconds: how long it took.
            received, sent: bytes of its body and of its answer's.
            code: of the error that it was refused with.
            stages: seconds by name of a stage.
        """
        status_class = NO_STATUS if status is None else f"{status // 100}xx"
        self._requests.labels(route, status_class).inc()
        self._seconds.labels(route).observe(seconds)
        self._received.labels(route).inc(received)
        self._sent.labels(route).inc(sent)
        if code is not None:
            self._refused.labels(code).inc()
        for stage, taken in stages.items():
            self._stages.labels(stage).observe(taken)
