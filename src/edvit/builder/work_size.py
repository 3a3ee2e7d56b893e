"""How much of the disk a build takes for its work folder, told before it starts, and what a limit costs.

Nearly all of it is the base model's residual streams on the views of the training set, which sub-models follow. Views
whose streams do not fit into the limit have them computed again in recovery: that costs time and no accuracy.
"""

from __future__ import annotations

from dataclasses import dataclass

from edvit.builder.train.teacher import stream_blocks, stream_bytes
from edvit.errors import ConfigError
from edvit.plan.cost import model_cost
from edvit.plan.plan import Plan
from edvit.units import si

DEFAULT_SHARE = 0.5
"""Share of the free disk that a work folder may take where no limit is given."""
STATES = 8
"""Copies of a model's weights in its checkpoints: weights, two moments and an average, and as many again while a new
checkpoint replaces the old one."""
TRAINING_PASSES = 3
"""Operations of a training step on an image, in passes of the model: forward, and twice as much backward."""


@dataclass(frozen=True)
class WorkSize:
    """Bytes of a work folder when everything in it is made.

    Attributes:
        fixed: of decoded images, models, outputs and features.
        streams: of the streams that are kept.
        blocks: after which sub-models follow the base model's stream; the limit does not change them.
        kept: views whose streams are kept.
        views: that the base model teaches on.
        unlimited: of the streams of all views.
        limit: that `kept` was fitted to.
        slower: how many times as long recovery takes at most, as its views without streams compute them.
    """

    fixed: int
    streams: int
    blocks: tuple[int, ...]
    kept: int
    views: int
    unlimited: int
    limit: int
    slower: float

    def describe(self) -> str:
        """For a person: the need, and what the limit costs."""
        need = f"the work folder takes up to {si(self.fixed + self.streams, 'B')} (limit {si(self.limit, 'B')})"
        if self.kept == self.views:
            return need
        return (
            f"{need}; it keeps the base model's streams of {self.kept} of {self.views} views, and recovery computes "
            f"the others: the same accuracy, up to {self.slower:.1f} times the time of recovery; all take "
            f"{si(self.fixed + self.unlimited, 'B')}; give --work-limit {self._all_gb:g}, or fewer --views"
        )

    @property
    def _all_gb(self) -> float:
        return -(-(self.fixed + self.unlimited) // 10**8) / 10


def fixed_bytes(
    plan: Plan,
    submodels: int,
    *,
    decoded: int,
    train: int,
    views: int,
    feature_views: int,
    pixels: int,
    workers: int,
    pruning: int,
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
        pruning: bytes of what pruning measures and keeps on its way.
    """
    base, largest = model_cost(plan.base), max((s.cost for s in plan.submodels), key=lambda cost: cost.weight_bytes)
    images = decoded * pixels
    outputs = 4 * views * train * (plan.base.classes + plan.base.feature_dim)
    features = feature_views * decoded * submodels * largest.feature_bytes
    models = 2 * base.weight_bytes + 5 * submodels * largest.weight_bytes
    checkpoints = STATES * max(base.weight_bytes, min(workers, submodels) * largest.weight_bytes)
    return images + outputs + features + models + checkpoints + pruning


def work_size(
    plan: Plan, *, train: int, views: int, recovers: bool, fixed: int, limit_gb: float | None, capacity: int, share: int
) -> WorkSize:
    """What a build takes within a limit.

    Args:
        plan: for the shapes of the models.
        train: training images.
        views: that the base model teaches on.
        recovers: whether sub-models are trained, and so follow streams.
        fixed: as `fixed_bytes` gives.
        limit_gb: GB that the work folder may take; None: `share`.
        capacity: bytes that there are for it on its disk, what it holds already included.
        share: bytes that it may have of them without a limit.

    Raises:
        ConfigError: it does not fit even without streams.
    """
    limit = min(share if limit_gb is None else int(limit_gb * 1e9), capacity)
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
    blocks = stream_blocks(plan.base) if recovers else ()
    each = stream_bytes(plan.base, train) if blocks else 0
    kept = min(views, max(0, limit - fixed) // each) if each else views
    slower = 1 + (views - kept) / views * _followed_work(plan, blocks) if blocks else 1.0
    return WorkSize(fixed, kept * each, blocks, kept, views, views * each, limit, slower)


def _followed_work(plan: Plan, blocks: tuple[int, ...]) -> float:
    """Operations of computing the base model's streams, relative to those of training the smallest sub-model."""
    depth = blocks[-1] + 2  # the last block is not followed, and does not run
    followed = model_cost(plan.base).flops * (depth - 1) / depth
    return followed / (TRAINING_PASSES * min(submodel.cost.flops for submodel in plan.submodels))
