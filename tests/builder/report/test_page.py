"""The report: every row is there, hostile names stay text, nothing is fetched, the HTML is well-formed."""

import re
from dataclasses import replace
from datetime import datetime, timezone
from html.parser import HTMLParser

import numpy as np
import pytest

from edvit.builder.report import figures
from edvit.builder.report.latency import BASE_ONNX, BASE_TORCH, Latency
from edvit.builder.report.mistakes import describe
from edvit.builder.report.page import Made, ReportData, render, write_report
from edvit.builder.report.rows import class_rows, latency_rows, result_rows
from edvit.builder.report.statistics import Difference, Share
from edvit.builder.report.training import Training
from edvit.builder.report.verdict import Verdict, judge
from edvit.builder.stages.prune import Kept
from edvit.bundle import (
    BaseModelInfo,
    DataInfo,
    FusionInfo,
    Manifest,
    ModelFile,
    SubModelInfo,
)
from edvit.fleet import Device, Fleet
from edvit.inputs.audio import Spectrogram
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


LABELS = np.arange(4000) % 10
COMMAND = "edvit build --data 'imagefolder:my parts' --devices 5 -o out"
LATENCIES = {
    BASE_TORCH: Latency(0.030, 0.0312, 0.033),
    BASE_ONNX: Latency(0.024, 0.0242, 0.025),
    "fused": Latency(0.012, 0.0121, 0.0125),
    "n1": Latency(0.010, 0.0110, 0.0112),
    "submodel-3": Latency(0.011, 0.0111, 0.0115),
}


def answers(rng):
    """Whether each of 4,000 answers is accurate, by metric; the accuracies are exact."""
    shares = {"base": 0.873, "fused": 0.82, "n1": 0.501}
    shares |= {f"fused-without-pi-{i}": 0.74 + 0.01 * i for i in range(5)}
    shares |= {f"submodel-{i}": 0.56 + 0.02 * i for i in range(5)}
    return {name: rng.permutation(4000) < round(share * 4000) for name, share in shares.items()}


def realistic() -> ReportData:
    rng = np.random.default_rng(0)
    bundle = manifest(
        flags={"model": "deit_tiny_patch16_224", "data": "imagefolder:cifar10", "seed": 0},
        config={"recover": {"epochs": 5, "learning_rate": 5e-4}, "keep": "1/3", "attention": "dims", "fleet": None},
        versions={"edvit": "0.1.0", "torch": "2.14.0", "timm": "1.0.31"},
    )
    correct = answers(rng)
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
        verdict=judge(correct["base"], correct["fused"], correct["n1"], submodels=5, chance=0.1),
        rows=result_rows(bundle, correct, own={i: correct["base"][400 * i : 400 * i + 400] for i in range(5)}),
        split_gain=Difference.of(correct["fused"], correct["n1"]),
        classes=class_rows(NAMES, LABELS, correct),
        latencies=latency_rows(bundle, LATENCIES),
        mistakes=tuple(
            describe(rng.normal(size=10).astype(np.float32), i, rng.integers(0, 256, (3, 112, 112), dtype=np.uint8))
            for i in range(10)
        ),
        trainings=(
            Training.of("base", "base model", {"validation": 0.9, "curve": {"loss": [2, 1]}}, 1000),
            Training.of("sub-model 0", "sub-models", {"validation": 0.8, "curve": {"loss": [3, 2]}}, 1000),
            Training.of("fusion", "fusion", {"validation": 0.82, "curve": {"loss": [1], "validation": [2]}}, 1000),
        ),
        made=Made(datetime(2026, 11, 27, 18, 30, tzinfo=timezone.utc), "Raspberry Pi 4 · 4 cores", COMMAND),
        confusion=confusion,
        kept=kept,
        pruned_by="channels, by fisher-kl",
        inputs=("parts · validation: 2 of 9 groups of --split-by",),
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


def cells(page):
    """The cells of each row after the first, by the first; of rows that begin alike the first."""
    return {row[0]: row[1:] for row in reversed(page.rows) if row}


def test_every_accuracy_has_its_interval_and_every_difference_its_test(full):
    table = cells(parse(full))
    for row in realistic().rows:
        low, high = row.share.interval
        assert table[row.name][0] == f"{100 * row.share.value:.1f} %{100 * low:.1f} – {100 * high:.1f} %"
    assert table["fused, 5 devices"][:2] == ["82.0 %80.8 – 83.2 %", "−5.3p < 0.001"]
    assert table["base, one device"][1] == ""
    assert re.fullmatch(r"\d\d\.\d %\d\d\.\d – \d\d\.\d %", table["sub-model 3 alone"][2])
    assert table["N = 1, same width"][2] == ""


def test_the_verdict_comes_first(full):
    page = parse(full)
    text = " ".join(" ".join(page.text).split())
    said = realistic().verdict
    assert said.text.startswith("Deploy the fused five: they are 31.9 points more accurate than N = 1")
    assert all(part in text for part in (said.text, *said.remarks))
    assert text.index(said.text) < text.index("fused test accuracy")


def test_headlines(full):
    text = " ".join(" ".join(parse(full).text).split())
    assert "82.0 % " in text
    assert "−5.3 points" in text
    assert "+31.9 points" in text
    assert "74.0 %" in text
    assert "as fast as the base in what runs it faster" in text
    assert "2.0×" in text
    assert re.search(r"8\.\d×", text)


def test_a_speed_up_is_against_the_base_in_what_runs_it_faster(full):
    table = cells(parse(full))
    assert table["base in PyTorch"] == ["–", "31.2 ms30.0 ms – 33.0 ms", ""]
    assert table["base in ONNX Runtime"] == ["–", "24.2 ms24.0 ms – 25.0 ms", ""]
    rows = {row.name: row for row in realistic().latencies}
    assert rows["fused, 5 devices"].faster == pytest.approx(0.0242 / 0.0121)
    assert rows["fused, 5 devices"].predicted_s == realistic().manifest.plan.latency_s
    assert rows["sub-model 3 alone"].predicted_s == realistic().manifest.plan.placed[3].latency_s
    assert rows["N = 1, same width"].predicted_s is None


def test_classes_are_sorted_and_told_apart(full):
    rows = [row for row in parse(full).rows if row[0] in NAMES and len(row) == 5]
    assert sorted(row[0] for row in rows) == sorted(NAMES)
    assert {row[1] for row in rows} == {"400"}
    shares = [float(row[3].partition(" %")[0]) for row in rows]
    assert shares == sorted(shares)
    assert "%" in rows[0][4], "N = 1"


def test_mistakes_are_pictures_with_both_classes(full):
    page = parse(full)
    pictures = [link for link in page.links if link.startswith("data:image/png;base64,")]
    assert page.tags.count("img") == 10
    assert len(pictures) >= 10
    text = " ".join(" ".join(page.text).split())
    assert all(f"label: {name}" in text for name in NAMES)


def test_trainings_are_drawn_where_they_were_noted(full):
    page = parse(full)
    assert cells(page)["fusion"] == ["82.0 %79.5 – 84.3 %"]
    text = " ".join(" ".join(page.text).split())
    assert "Mean training loss of each epoch, and loss on the validation images after it where" in text
    assert all(title in text for title in ("base model: training loss", "fusion: validation loss"))


def test_when_where_and_how_it_was_built(full):
    page = parse(full)
    text = " ".join(" ".join(page.text).split())
    assert "2026-11-27 18:30 UTC · Raspberry Pi 4 · 4 cores · edvit 0.1.0" in text
    assert COMMAND in "".join(page.text)


def test_plan_pruning_and_provenance(full):
    page = parse(full)
    table = cells(page)
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
        "validation: 2 of 9 groups of --split-by",
        "recover.learning_rate",
        "0.0005",
        "1.0.31",
        "30 min 20 s",
        "f" * 64,
        "a" * 64,
        "ONNX Runtime, one",
    ):
        assert part in text


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
    correct = {metric: np.array([True, False, True, True, False]) for metric in ("base", "fused", "n1")}
    data = ReportData(
        manifest=manifest(names, groups=2, flags={"<b>": "</style><script>"}),
        rows=(replace(result_rows(manifest(), correct)[0], name="<i>base</i>"),),
        classes=class_rows(names, np.arange(5), correct),
        mistakes=(describe(np.eye(5, dtype=np.float32)[1], 0, np.zeros((1, 8, 8), np.uint8)),),
        trainings=(Training("<u>", "fusion", Share(1, 2), (1.0,), (0.5,)),),
        confusion=np.eye(5, dtype=np.int64),
        latencies=latency_rows(manifest(), LATENCIES),
        measured_on="<u>",
        made=Made(datetime(2026, 1, 1, tzinfo=timezone.utc), "<b>CPU</b>", "edvit build '<script>'"),
        verdict=Verdict("unknown", "<i>", ("<b>",)),
        inputs=("<b>",),
    )
    path = tmp_path / "report.html"
    write_report(path, data)
    html = path.read_text(encoding="utf-8")
    page = parse(html)
    assert not {"script", "b", "i", "u"} & set(page.tags)
    assert page.tags.count("img") == 1
    text = "".join(page.text)
    assert "$x^{2" in text
    assert "猫 & собака" in text
    assert names[0] in text


def test_minimal():
    page = parse(render(ReportData(manifest=manifest())))
    text = "".join(page.text)
    assert "svg" not in page.tags
    assert not {"accuracy", "latency", "classes", "mistakes", "training", "verdict"} & set(page.ids)
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


def test_what_was_not_measured_has_no_row():
    correct = {name: np.ones(4, dtype=bool) for name in ("base", "fused", "fused-without-pi-1", "submodel-0")}
    bundle = manifest(groups=2)
    rows = result_rows(bundle, correct, own={0: np.ones(2, dtype=bool)})
    assert [row.kind for row in rows] == ["base", "fused", "missing", "submodel"]
    assert rows[0].params == bundle.base.params
    assert [row.own for row in rows] == [None, None, None, Share(2, 2)]
    assert [row.against_base for row in rows] == [None, *[Difference(0, 0, 4)] * 3]
    assert result_rows(manifest(), {}) == ()


def test_a_class_without_test_images_is_last_and_has_no_accuracy():
    correct = {"base": np.array([True, False]), "fused": np.array([True, True])}
    rows = class_rows(("seen", "unseen", "hard"), np.array([0, 2]), correct)
    assert [row.name for row in rows] == ["seen", "hard", "unseen"]
    table = cells(parse(render(ReportData(manifest=manifest(), classes=rows))))
    assert table["unseen"] == ["0", "–", "–"]


def test_a_hundred_classes_scroll_in_their_own_box():
    names, labels = tuple(f"class {i}" for i in range(100)), np.arange(400) % 100
    correct = {metric: labels % 7 > 0 for metric in ("base", "fused")}
    html = render(ReportData(manifest=manifest(names), classes=class_rows(names, labels, correct)))
    assert 'class="scroll tall"' in html
    assert len([row for row in parse(html).rows if row[0] in names]) >= 100


def test_the_input_is_said_height_first():
    how = Preprocessing(image_size=(96, 160), channels=3, mean=(0.5,) * 3, std=(0.5,) * 3)
    assert "input 96 × 160 × 3" in render(replace(realistic(), manifest=manifest(preprocessing=how)))


def test_sound_bundles_speak_of_sounds():
    how = Preprocessing(image_size=112, channels=3, mean=(0.5,) * 3, std=(0.5,) * 3, spectrogram=Spectrogram())
    html = render(replace(realistic(), manifest=manifest(preprocessing=how)))
    assert "test images" not in html.lower()
    assert "Test<small>sounds</small>" in html
    assert "the spectrogram, low frequencies at the bottom" in html


def test_curves_of_different_lengths_share_a_figure():
    svg = figures.curves_figure("loss", {"base": [1.0, 0.5, 0.2], "$x^{2": [0.7]}, "curve")
    page = parse(svg)
    text = "".join(page.text)
    assert "$x^{2" in text
    assert "epoch" in text
