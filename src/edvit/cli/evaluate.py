"""`edvit evaluate`: accuracy and latency over labelled test images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from edvit.builder.options import DATA_HELP, DATA_ROOT_HELP, SPLIT_BY_HELP
from edvit.cli import Json, PositiveInt
from edvit.cli.access import AccessOptions
from edvit.inputs.datasets import Split
from edvit.units import counted

if TYPE_CHECKING:
    from edvit.runtime.evaluation import Classified, Evaluation

    Ask = Callable[[bytes], Classified]


def evaluate(
    target: Annotated[str, Parameter(help="URL of a running gateway, or the folder of a bundle to run right here.")],
    /,
    *,
    data: Annotated[str, Parameter(help=DATA_HELP)],
    data_root: Annotated[Path | None, Parameter(help=DATA_ROOT_HELP)] = None,
    split_by: Annotated[
        str | None, Parameter(help=f"{SPLIT_BY_HELP} Default: a bundle's own, where it was built from the same --data.")
    ] = None,
    split: Annotated[Split, Parameter(help="Part of the data set that is measured.")] = "test",
    limit: Annotated[
        PositiveInt | None,
        Parameter(help="At most so many of them, evenly spaced over the split; default: all."),
    ] = None,
    access: AccessOptions = AccessOptions(),
    as_json: Annotated[Json, Parameter(help="Print JSON.")] = False,
) -> None:
    """Measure accuracy, per class too, and latency, one image or sound at a time."""
    from rich.console import Console
    from rich.progress import Progress

    from edvit.inputs.datasets import FileSounds, read_split
    from edvit.runtime.evaluation import evaluate as measure

    with answering(target, access) as (classes, ask):
        by = split_by or built_with(target, data)
        images = read_split(data, split, data_root, by).with_classes(classes)
        console = Console(stderr=True)
        for note in images.notes:
            console.print(note, soft_wrap=True, markup=False)
        with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
            task = bar.add_task("evaluate", total=None)
            result = measure(
                images, ask, limit=limit, progress=lambda done, total: bar.update(task, completed=done, total=total)
            )
    kind = "sound" if isinstance(images, FileSounds) else "image"
    print(to_json(target, data, split, result) if as_json else to_text(result, kind))


def built_with(target: str, data: str) -> str | None:
    """The --split-by of a bundle that was built from this data set; a gateway does not tell its own."""
    if target.startswith(("http://", "https://")):
        return None
    from edvit.bundle import read_bundle

    manifest = read_bundle(Path(target)).manifest
    by = manifest.config.get("split_by") if manifest.data.spec == data else None
    return by if isinstance(by, str) else None


@contextmanager
def answering(target: str, access: AccessOptions) -> Iterator[tuple[tuple[str, ...], Ask]]:
    """The class names of a gateway or a bundle, and a function that classifies the bytes of an image or sound file."""
    from edvit.runtime.evaluation import Classified

    if target.startswith(("http://", "https://")):
        with access.client(target) as client:

            def ask_gateway(image: bytes) -> Classified:
                answer = client.predict(image)
                return Classified(answer.index, answer.degraded)

            yield client.fleet().classes, ask_gateway
    else:
        from edvit.bundle import read_bundle
        from edvit.runtime.predictor import LocalPredictor

        bundle = read_bundle(Path(target))
        predictor = LocalPredictor(bundle)

        def ask_here(image: bytes) -> Classified:
            answer = predictor.predict(image)
            return Classified(answer.index, answer.degraded)

        yield bundle.manifest.data.classes, ask_here


def to_text(result: Evaluation, kind: str) -> str:
    """A few readable lines; `kind` is what was classified, `image` or `sound`."""
    width = max(len(c.name) for c in result.classes)
    lines = [
        f"accuracy   {result.accuracy:.2%} of {counted(result.images, kind)}",
        f"latency    p50 {result.latency_at(50) * 1000:.1f} ms, p95 {result.latency_at(95) * 1000:.1f} ms",
        f"degraded   {result.degraded:,}",
        "",
        *(f"{c.name:{width}}   {c.accuracy:7.2%}   {c.correct:,} of {c.images:,}" for c in result.classes),
    ]
    return "\n".join(lines)


def to_json(target: str, data: str, split: str, result: Evaluation) -> str:
    import json

    values = {
        "target": target,
        "data": data,
        "split": split,
        "images": result.images,
        "accuracy": result.accuracy,
        "latency_p50_ms": result.latency_at(50) * 1000,
        "latency_p95_ms": result.latency_at(95) * 1000,
        "degraded": result.degraded,
        "classes": {c.name: {"accuracy": c.accuracy, "correct": c.correct, "images": c.images} for c in result.classes},
    }
    return json.dumps(values, indent=1)
