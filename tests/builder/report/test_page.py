"""The report: every row is there, hostile names stay text, nothing is fetched, the HTML is well-formed."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest

from edvit.builder.report import figures
from edvit.builder.report.page import ReportData, ResultRow, render, result_rows, write_report
from edvit.builder.stages.prune import Kept
from edvit.bundle import (
    BaseModelInfo,
    DataInfo,
    FusionInfo,
    Manifest,
    Metric,
    ModelFile,
    SubModelInfo,
)
from edvit.fleet import Device, Fleet
from edvit.inputs.preprocess import Preprocessing
from edvit.plan.cost import model_cost
from edvit.plan.greedy import assign
from edvit.plan.partition import partition
from edvit.shape.vit import Architecture, BlockWidths, Widths

NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
VOID = {"meta", "br", "link", "img", "path", "use", "rect", "image", "circle", "line"}


def manifest(names=NAMES, groups: int = 5, **changes) -> Manifest:
    """As a build of DeiT-Tiny at 112 px makes it: plan and costs are real, digests are not."""
    blocks = (BlockWidths(heads=3, head_dim=64, hidden=768),) * 12
    base = Architecture(
        name="deit_tiny_patch16_224",
        image_size=112,
        patch_size=16,
        channels=3,
        prefix_tokens=1,
        classes=len(names),
        widths=Widths(dim=192, blocks=blocks),
    )
    devices = [Device(name=f"pi-{i}", profile="raspberry-pi-4b", memory_mb=20, energy_j=1.5) for i in range(groups)]
    fleet = Fleet(name="shelf", devices=(*devices, Device(name="spare", profile="mini-pc", memory_mb=1)))
    plan = assign(base, partition(len(names), groups), fleet, heads_pruned=2)
    cost = model_cost(base)
    submodels = tuple(
        SubModelInfo(
            id=one.id,
            classes=one.classes,
            widths=one.architecture.widths,
            model=ModelFile(file=f"submodel-{one.id}.onnx", sha256=f"{one.id:064x}", bytes=one.cost.weight_bytes),
            params=one.cost.params,
            flops=one.cost.flops,
            peak_memory_bytes=one.cost.peak_memory_bytes,
            feature_dim=one.architecture.widths.dim,
        )
        for one in plan.submodels
    )
    values = {
        "base": BaseModelInfo(
            name=base.name,
            image_size=112,
            widths=base.widths,
            params=cost.params,
            flops=cost.flops,
            bytes=cost.weight_bytes,
            weights_sha256="a" * 64,
        ),
        "data": DataInfo(spec="imagefolder:cifar10", classes=names, train=9000, validation=1000, test=4000),
        "preprocessing": Preprocessing(image_size=112, channels=3, mean=(0.5,) * 3, std=(0.5,) * 3),
        "submodels": submodels,
        "fusion": FusionInfo(
            model=ModelFile(file="fusion.onnx", sha256="f" * 64, bytes=400_000),
            submodels=tuple(range(groups)),
            params=98_000,
        ),
        "plan": plan.info(),
    }
    return Manifest(**{**values, **changes})


def realistic() -> ReportData:
    rng = np.random.default_rng(0)
    bundle = manifest(
        flags={"model": "deit_tiny_patch16_224", "data": "imagefolder:cifar10", "seed": 0},
        config={"recover": {"epochs": 5, "learning_rate": 5e-4}, "keep": "1/3", "attention": "dims", "fleet": None},
        versions={"edvit": "0.1.0", "torch": "2.14.0", "timm": "1.0.31"},
    )
    small, whole = bundle.submodels[0], bundle.base
    rows = [
        ResultRow("base", "base, one device", 0.873, None, whole.params, whole.bytes, 0.0451, 0.0312),
        ResultRow("fused", "fused, 5 devices", 0.8204, None, small.params, small.model.bytes, 0.0172, 0.0121),
        ResultRow("single", "N = 1, same width", 0.5012, None, small.params, small.model.bytes, 0.0108, None),
        *(
            ResultRow("missing", f"fused without pi-{i}", 0.74 + 0.01 * i, None, small.params, small.model.bytes)
            for i in range(5)
        ),
        *(
            ResultRow("submodel", f"sub-model {i}", 0.56 + 0.02 * i, 0.9 + 0.01 * i, small.params, small.model.bytes)
            for i in range(5)
        ),
    ]
    confusion = rng.integers(0, 9, size=(10, 10)) + np.diag(rng.integers(300, 380, size=10))
    kept = {
        i: Kept(
            attention=tuple(rng.uniform(0.4, 0.95, 12)),
            ffn=tuple(rng.uniform(0.3, 0.9, 12)),
            channels=tuple(rng.permutation(192) < 64),
        )
        for i in range(5)
    }
    return ReportData(
        manifest=bundle,
        rows=tuple(rows),
        confusion=confusion,
        kept=kept,
        pruned_by="channels, by fisher-kl",
        seeds={"build": 0, "groups": 0},
        measured_on="ONNX Runtime, one thread, median of 200 images",
        durations_s={"base": 412.0, "recover": 1820.5, "export": 4.2},
    )


class _Page(HTMLParser):
    """Text, tags and attributes; fails on a tag that is closed out of order."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.text: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.rows: list[list[str]] = []
        self.cell = False

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "xlink:href", "action", "data")]
        self.ids += [value for name, value in attrs if name == "id"]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self.cell = True
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag in VOID:
            return
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag
        if tag in ("td", "th"):
            self.cell = False

    def handle_data(self, data):
        self.text.append(data)
        if self.cell:
            self.rows[-1][-1] += data.strip()


def parse(html: str) -> _Page:
    page = _Page()
    page.feed(html)
    page.close()
    assert page.open == []
    assert len(page.ids) == len(set(page.ids)), "an id is used twice"
    return page


@pytest.fixture(scope="module")
def full() -> str:
    return render(realistic())


def test_every_row_is_there_with_its_figures(full):
    table = {row[0]: row[1:] for row in parse(full).rows if row}
    for row in realistic().rows:
        assert table[row.name][0] == f"{100 * row.accuracy:.1f} %"
    assert table["fused, 5 devices"][1] == "−5.3"
    assert table["base, one device"][1] == ""
    assert table["sub-model 3"][2] == "93.0 %"
    assert table["N = 1, same width"][-1] == "–"
    assert table["fused, 5 devices"][-2:] == ["17.2 ms", "12.1 ms"]


def test_headlines(full):
    text = " ".join(" ".join(parse(full).text).split())
    assert "82.0 % " in text
    assert "−5.3 points" in text
    assert "+31.9 points" in text
    assert "74.0 %" in text
    assert re.search(r"8\.\d×", text)


def test_plan_pruning_and_provenance(full):
    page = parse(full)
    table = {row[0]: row[1:] for row in page.rows if row}
    line = realistic().manifest.plan.placed[0]
    assert table[line.device][0] == "0"
    assert table[line.device][2] == "20.0 MB"
    assert table[line.device][-1] == "1.50 J"
    assert table["spare"][0] == "spare"
    pruned = next(row for row in page.rows if len(row) == 6 and row[0] == "0")
    assert pruned[2:5] == ["6433 %", "7238 %", "25633 %"]  # width and share stand side by side
    text = "".join(page.text)
    for part in (
        "fisher-kl",
        "recover.learning_rate",
        "0.0005",
        "1.0.31",
        "30 min 20 s",
        "f" * 64,
        "a" * 64,
        "ONNX Runtime, one",
    ):
        assert part in text


def test_predicted_and_measured_are_labelled(full):
    header = next(row for row in parse(full).rows if row and row[0] == "Model")
    assert header.count("Latencypredicted") == 1
    assert header.count("Latencymeasured") == 1
    assert "Accuracymeasured" in header


def test_nothing_is_fetched_and_nothing_runs(full):
    page = parse(full)
    assert "script" not in page.tags
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in page.links)
    assert "://" not in full
    assert "@import" not in full
    assert not re.search(r"url\((?!#)", full)


def test_references_inside_the_figures_resolve(full):
    page = parse(full)
    used = set(re.findall(r"url\(#([^)]+)\)", full)) | {link[1:] for link in page.links if link.startswith("#")}
    assert used
    assert used <= set(page.ids)


def test_hostile_names_stay_text(tmp_path):
    names = ("<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "$x^{2", "猫 & собака", "a" * 300)
    data = ReportData(
        manifest=manifest(names, groups=2, flags={"<b>": "</style><script>"}),
        rows=(ResultRow("base", "<i>base</i>", 0.5),),
        confusion=np.eye(5, dtype=np.int64),
        kept={},
        measured_on="<u>",
    )
    path = tmp_path / "report.html"
    write_report(path, data)
    html = path.read_text(encoding="utf-8")
    page = parse(html)
    assert not {"script", "img", "b", "i", "u"} & set(page.tags)
    text = "".join(page.text)
    assert "$x^{2" in text
    assert "猫 & собака" in text
    assert names[0] in text


def test_minimal():
    page = parse(render(ReportData(manifest=manifest())))
    text = "".join(page.text)
    assert "svg" not in page.tags
    assert "Accuracy, size" not in text
    assert "Confusion" not in text
    assert "None" not in text
    assert "What was pruned where" in text


def test_one_sub_model_is_no_plural():
    html = " ".join(render(ReportData(manifest=manifest(groups=1))).split())
    assert "10 classes in 1 sub-model for the fleet" in html


def test_is_the_same_twice(full):
    assert render(realistic()) == full


@pytest.mark.parametrize("classes", [1, 2, 21, 100])
def test_confusion_of_any_size(classes):
    svg = figures.confusion_figure(np.eye(classes, dtype=np.int64) * 7, [f"class {i}" for i in range(classes)])
    page = parse(svg)
    assert page.tags[0] == "svg"
    assert ("7" in [part.strip() for part in page.text]) == (classes <= 20)
    assert "currentColor" in svg
    labels = [part for part in page.text if part.startswith("class ")]
    assert 2 <= len(labels) <= 80


def test_a_class_without_test_images_divides_by_nothing():
    svg = figures.confusion_figure(np.array([[3, 0], [0, 0]]), ["seen", "unseen"])
    assert "nan" not in svg.lower()


def test_rows_come_from_the_metrics():
    names = ["base", "fused", "n1", "fused-without-pi-0", "fused-without-pi-1", "submodel-0", "submodel-1"]
    metrics = tuple(Metric(name=name, value=0.9 - i / 10, split="test") for i, name in enumerate(names))
    bundle = manifest(groups=2, metrics=(*metrics, Metric(name="fused", value=0.99, split="validation")))
    rows = result_rows(bundle, own_accuracy={1: 0.97}, measured_s={"base": 0.03})
    assert [row.kind for row in rows] == ["base", "fused", "single", "missing", "missing", "submodel", "submodel"]
    assert [row.accuracy for row in rows] == [metric.value for metric in metrics]
    assert rows[0].params == bundle.base.params
    assert rows[0].measured_s == 0.03
    assert rows[1].predicted_s == bundle.plan.latency_s
    assert [row.own_accuracy for row in rows[-2:]] == [None, 0.97]
    assert result_rows(manifest()) == ()
