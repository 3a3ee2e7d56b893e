"""`edvit demo`: the whole of it on this machine, on data that ships with scikit-learn."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from edvit.builder.jobs.idle import sleep_while_waiting
from edvit.cli import NaturalInt, Port
from edvit.cli.console.loading import loading
from edvit.errors import MissingExtraError
from edvit.units import counted

if TYPE_CHECKING:
    from rich.table import Table

    from edvit.builder.built import Built
    from edvit.builder.config import BuildConfig
    from edvit.builder.jobs.progress import Reporter
    from edvit.bundle import Bundle
    from edvit.runtime.evaluation import Evaluation

DEVICES = 5
KEEP = "2/6"
RECOVER_EPOCHS = 20


def demo(
    *,
    out: Annotated[Path, Parameter(alias="-o", help="Folder of the bundle and the report.")] = Path("edvit-demo"),
    seed: Annotated[NaturalInt, Parameter(help="Seed of the class groups, of all draws and of the training.")] = 0,
    port: Annotated[Port, Parameter(help="HTTP port of the gateway; 0 takes a free one.")] = 0,
) -> None:
    """Train on digits, split over 5 devices, prune, fuse, serve with 5 device processes, evaluate over HTTP."""
    sleep_while_waiting()
    try:
        with loading():
            import edvit.builder.pipeline  # noqa: F401  (asks for all of the build world)
            from edvit.builder.config import make_config
            from edvit.builder.jobs.progress import Reporter
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"the demo needs {error.name}: pip install 'edvit[build,serve]'") from None
    from edvit.fleet import local_fleet

    config = make_config(fleet=local_fleet(DEVICES), keep=KEEP, recover_epochs=RECOVER_EPOCHS, seed=seed)
    run_demo(config, out, port=port, report=Reporter(), command=("edvit", *sys.argv[1:]))


def run_demo(
    config: BuildConfig, out: Path, *, port: int, report: Reporter, command: Sequence[str] | None = None
) -> None:
    """Build a bundle at `out`, serve it with a process per device, evaluate it over HTTP and show what came out.

    Args:
        command: what was typed, for the report.

    Raises:
        EdvitError: as `build` and `serve_locally`.
    """
    from edvit.builder.pipeline import build
    from edvit.runtime.local import serve_locally

    bundle, built = build(config, out, flags={"demo": True, "seed": config.seed}, command=command, report=report)

    start = time.monotonic()
    with serve_locally(bundle, port=port) as service:
        names = list(service.devices)
        report.line("serve", f"gateway {service.url}, devices {names[0]} … {names[-1]}", time.monotonic() - start)
        start = time.monotonic()
        result, same = evaluate_over_http(bundle, service.url)
    report.line("evaluate", f"{counted(result.images, 'image')} over HTTP", time.monotonic() - start)

    report.console.print()
    report.console.print(results(bundle, built, result))
    agree = "every answer equals" if same == result.images else f"{same:,} of {result.images:,} answers equal"
    report.console.print(
        f"{agree} what the same files give in one process. Latency: the base on one thread, in PyTorch or ONNX "
        "Runtime, whichever is faster; fused over HTTP, all processes on this machine; N = 1 in ONNX Runtime on one "
        "thread.",
        style="dim",
    )
    report.console.print(f"\nBundle and report: {bundle.path} (open report.html)", soft_wrap=True, markup=False)
    report.console.print(f"Next: edvit serve {bundle.path} --local", soft_wrap=True, markup=False)


def evaluate_over_http(bundle: Bundle, url: str) -> tuple[Evaluation, int]:
    """The whole test set through the gateway, and how many answers equal those of one process."""
    from edvit.inputs.datasets import read_split
    from edvit.runtime.evaluation import Classified, evaluate
    from edvit.runtime.http.client import Client
    from edvit.runtime.predictor import LocalPredictor

    manifest = bundle.manifest
    images = read_split(manifest.data.spec, "test").with_classes(manifest.data.classes)
    here = LocalPredictor(bundle)
    with Client(url) as client:

        def ask(data: bytes) -> Classified:
            answer = client.predict(data)
            return Classified(answer.index, answer.degraded)

        result = evaluate(images, ask)
    same = sum(here.predict(images.encoded(i)).index == predicted for i, predicted in enumerate(result.predicted))
    return result, same


def results(bundle: Bundle, built: Built, measured: Evaluation) -> Table:
    """The demo's table."""
    from rich.table import Table

    from edvit.builder.report.latency import faster_base

    manifest, test = bundle.manifest, built.test
    size = max(submodel.model.bytes for submodel in manifest.submodels)
    without = [test.accuracy(scores) for scores in test.without.values()]
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for column in ("accuracy", "latency p50", "size per device"):
        table.add_column(column, justify="right")

    def row(name: str, accuracy: str, latency_s: float | None, size_bytes: int | None) -> None:
        latency = "" if latency_s is None else f"{latency_s * 1e3:.1f} ms"
        table.add_row(name, accuracy, latency, "" if size_bytes is None else f"{size_bytes / 1e6:.2f} MB")

    base_s = faster_base(built.latencies).median_s
    row("base, one device", f"{test.accuracy(test.base):.1%}", base_s, manifest.base.bytes)
    row(f"fused, {counted(len(without), 'device')}", f"{measured.accuracy:.1%}", measured.latency_at(50), size)
    if test.baseline is not None:
        row("N = 1, same width", f"{test.accuracy(test.baseline):.1%}", built.latencies["n1"].median_s, size)
    row("one device lost", f"{min(without):.1%} – {max(without):.1%}", None, None)
    return table
