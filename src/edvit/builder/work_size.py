"""How much of the disk a build takes for its work folder, told before it starts, and what a limit costs.

Nearly all of it is the base model's residual streams on the views of the training set. Where they do not fit into the
limit, sub-models follow the streams of fewer blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

from edvit.builder.train.teacher import STREAM_LIMIT_BYTES, stream_blocks, stream_bytes
from edvit.errors import ConfigError
from edvit.plan.cost import model_cost
from edvit.plan.plan import Plan
from edvit.shape.any import AnyArchitecture
from edvit.units import si

DEFAULT_SHARE = 0.5
"""Share of the free disk that a work folder may take where no limit is given."""
STATES = 8
"""Copies of a model's weights in its checkpoints: weights, two moments and an average, and as many again while a new
checkpoint replaces the old one."""


@dataclass(frozen=True)
class WorkSize:
    """Bytes of a work folder when everything in it is made.

    Attributes:
        fixed: of decoded images, models, outputs and features.
        streams: of the streams that sub-models follow.
        blocks: after which the streams are kept.
        wanted: after which they would be kept without a limit.
        unlimited: of their streams.
        limit: that the two were fitted to.
    """

    fixed: int
    streams: int
    blocks: tuple[int, ...]
    wanted: tuple[int, ...]
    unlimited: int
    limit: int

    def describe(self) -> str:
        """For a person: the need, and what the limit costs."""
        need = f"the work folder takes up to {si(self.fixed + self.streams, 'B')} (limit {si(self.limit, 'B')})"
        if self.blocks == self.wanted:
            return need
        followed = f"{len(self.blocks)} of {len(self.wanted)} blocks" if self.blocks else "no block"
        return (
            f"{need}; so sub-models follow the base model in {followed} and may be less accurate: all take "
            f"{si(self.fixed + self.unlimited, 'B')}; give --work-limit {self._all_gb:g}, or fewer --views"
        )

    @property
    def _all_gb(self) -> float:
        return -(-(self.fixed + self.unlimited) // 10**8) / 10


def fixed_bytes(
    plan: Plan, submodels: int, *, decoded: int, train: int, views: int, feature_views: int, pixels: int, workers: int
) -> int:
    """Bytes of all results but streams, and of the checkpoints that lie beside them.

    Args:
        plan: for the sizes of the models.
        submodels: how many are built, with that of all classes.
        decoded: images that are decoded.
        train: training images.
        views: that the base model teaches on.
        feature_views: that the fusion is trained on.
        pixels: values of one image.
        workers: trainings at a time.
    """
    base, largest = model_cost(plan.base), max((s.cost for s in plan.submodels), key=lambda cost: cost.weight_bytes)
    images = decoded * pixels
    outputs = 4 * views * train * (plan.base.classes + plan.base.feature_dim)
    features = feature_views * decoded * submodels * largest.feature_bytes
    models = 2 * base.weight_bytes + 4 * submodels * largest.weight_bytes
    checkpoints = STATES * max(base.weight_bytes, min(workers, submodels) * largest.weight_bytes)
    return images + outputs + features + models + checkpoints


def work_size(
    architecture: AnyArchitecture,
    *,
    train: int,
    views: int,
    recovers: bool,
    fixed: int,
    limit_gb: float | None,
    capacity: int,
) -> WorkSize:
    """What a build takes within a limit.

    Args:
        architecture: the base model's.
        train: training images.
        views: that the base model teaches on.
        recovers: whether sub-models are trained, and so follow streams.
        fixed: as `fixed_bytes` gives.
        limit_gb: GB that the work folder may take; None: a share of `capacity`, of which streams may have 12 GiB.
        capacity: bytes that there are for it on its disk, what it holds already included.

    Raises:
        ConfigError: it does not fit even without streams.
    """
    limit = int(capacity * DEFAULT_SHARE) if limit_gb is None else min(int(limit_gb * 1e9), capacity)
    most = capacity if limit_gb is None else limit
    if fixed > most:
        if most == capacity:
            raise ConfigError(
                f"the work folder takes {si(fixed, 'B')}, and its disk has room for {si(most, 'B')}; "
                "give another --work, fewer --views or a smaller --img-size"
            )
        raise ConfigError(
            f"the work folder takes {si(fixed, 'B')}, and --work-limit allows {si(most, 'B')}; "
            "give a larger one, fewer --views or a smaller --img-size"
        )
    each = stream_bytes(architecture, train, views)
    wanted = stream_blocks(architecture, train, views, None) if recovers else ()
    room = limit - fixed if limit_gb is not None else min(limit - fixed, STREAM_LIMIT_BYTES)
    blocks = stream_blocks(architecture, train, views, room) if recovers else ()
    return WorkSize(fixed, len(blocks) * each, blocks, wanted, len(wanted) * each, limit)
