"""What a build has made, before it is a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edvit.builder.config import BuildConfig
from edvit.builder.report.latency import Latency
from edvit.builder.report.verdict import Verdict
from edvit.builder.stages.base import Base
from edvit.builder.stages.data import Data
from edvit.builder.stages.fuse import Fused
from edvit.builder.stages.source import Source
from edvit.builder.stages.test import TestResult
from edvit.builder.work_size import WorkSize
from edvit.plan.plan import Plan


@dataclass(frozen=True)
class Built:
    """All that the stages of a build made."""

    config: BuildConfig
    source: Source
    data: Data
    base: Base
    plan: Plan
    fused: Fused
    baseline: Fused | None
    test: TestResult
    latencies: Mapping[str, Latency]
    """Measured on this machine, as `measure_latencies` gives them."""
    verdict: Verdict
    size: WorkSize
    """Announced for the work folder, and on how many views streams were kept."""
    mixed: bool
    """Whether training was in mixed precision."""

    @property
    def devices(self) -> list[str]:
        """The device of each sub-model, in their order."""
        return [submodel.device for submodel in self.plan.submodels]
