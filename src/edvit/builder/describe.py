"""Stages and their results in words: the lines of the console, which the report shows as well."""

from __future__ import annotations

from edvit.builder.config import BuildConfig
from edvit.builder.jobs import parallel
from edvit.builder.models.family import vit_widths
from edvit.builder.report.page import Made
from edvit.builder.report.statistics import Share
from edvit.builder.stages.base import Base
from edvit.builder.stages.data import Data
from edvit.builder.stages.source import Source
from edvit.builder.stages.test import TestResult
from edvit.plan.cost import Precision, model_cost
from edvit.plan.plan import Plan
from edvit.shape.conv import FilterWidths
from edvit.units import counted


def describe_data(config: BuildConfig, source: Source, data: Data) -> str:
    """The data set: what was read, how it was split, and what a user should know of it."""
    how = source.preprocessing
    sounds = "" if how.spectrogram is None else f"{how.spectrogram.seconds:g} s of sound as "
    return " · ".join(
        (
            config.data,
            f"{counted(len(data.classes), 'class', 'es')}, {sounds}{how.image_size.height}×{how.image_size.width}, "
            f"{len(data.train):,} train / {len(data.validation):,} validation",
            *data.notes,
        )
    )


def describe_base(source: Source, base: Base) -> str:
    """The base model: how it was trained, how accurate it is, and what its head and its statistics were taken from."""
    note = base.artifact.note
    how = counted(note["epochs"], "epoch") if note["epochs"] else "as given"
    text = f"{source.model} · {how} · {note['validation']:.1%} on validation"
    if source.origin is None:
        return text
    order = "as the data's" if source.order is None else f"by {source.order.source}"
    head = "new head" if note["new_head"] else f"head's classes {order}"
    named = "" if source.other_names is None else f" ({source.other_names})"
    weights = "" if source.taken is None else f"weights of {source.taken} · "
    return f"{text} · {weights}{head}{named}, mean and deviation of {source.statistics}"


def describe_groups(plan: Plan, data: Data) -> str:
    """How many class groups there are, and of how many classes."""
    sizes = sorted({len(submodel.classes) for submodel in plan.submodels})
    per_group = " or ".join(str(size) for size in sizes)
    return f"{counted(len(data.classes), 'class', 'es')} in {counted(len(plan.submodels), 'group')} of {per_group}"


def describe_pruner(config: BuildConfig) -> str:
    """How sub-models were pruned, and without which steps."""
    if not config.rotated:
        return f"channels, by {config.resolved_criterion}"
    fitted = ", widths fitted" if config.resolved_widths == "fitted" else ""
    return f"subspace{fitted}" + "".join(f", without {step}" for step in config.without)


def describe_widths(plan: Plan, config: BuildConfig) -> str:
    """What pruning left of the base model's widths and size."""
    old, new = plan.base.widths, plan.submodels[0].architecture.widths
    limit = "no dearer than " if config.resolved_widths == "fitted" else ""
    ratio = model_cost(plan.base).params / max(submodel.cost.params for submodel in plan.submodels)
    if isinstance(old, FilterWidths) and isinstance(new, FilterWidths):
        widths = f"filters {min(old.filters)}–{max(old.filters)}→{min(new.filters)}–{max(new.filters)}"
    else:
        old, new = vit_widths(old), vit_widths(new)
        widths = (
            f"d {old.dim}→{new.dim}, heads {old.blocks[0].heads}×{old.blocks[0].head_dim}→"
            f"{new.blocks[0].heads}×{new.blocks[0].head_dim}, FFN {old.blocks[0].hidden}→{new.blocks[0].hidden}"
        )
    return f"by {describe_pruner(config)} · {limit}{widths} · {ratio:.1f}× smaller"


def describe_submodels(count: int, with_baseline: bool, config: BuildConfig, pool: parallel.Pool) -> str:
    """How many sub-models were trained, for how long and where."""
    more = ", and one for all classes to compare" if with_baseline else ""
    epochs = counted(config.recover_epochs, "epoch")
    return f"{counted(count, 'sub-model')}{more} · {epochs}, {pool.describe()}"


def _as_run(precision: Precision) -> str:
    return "int8, unpacked from int4" if precision == "int4" else precision


def describe_timing(made: Made, noun: str, precision: Precision) -> str:
    """On what and how latencies were measured.

    Args:
        made: says the processor.
        noun: `image` or `sound`.
        precision: of the sub-models.
    """
    return (
        f"Measured on {made.cpu}, one thread, one {noun} at a time, all models in turns: the base in "
        f"fp32, sub-models in ONNX Runtime {_as_run(precision)}. Fused is the device that takes longest with all "
        "its sub-models, and the fusion, without a network; N = 1 is its one sub-model and its fusion."
    )


def describe_test(test: TestResult, noun: str) -> str:
    """The accuracies on the test split, with their intervals."""
    names = (("fused", "fused"), ("base", "base"), ("n1", "N = 1 at the same width"))
    correct = test.correct()
    accuracies = ", ".join(f"{name} {_in_words(Share.of(correct[key]))}" for key, name in names if key in correct)
    return f"{counted(len(test.labels), f'test {noun}')} · {accuracies}"


def _in_words(share: Share) -> str:
    """The accuracy and its interval: `99.2% (97.6–99.7)`."""
    low, high = share.interval
    return f"{share.correct / share.images:.1%} ({100 * low:.1f}–{100 * high:.1f})"
