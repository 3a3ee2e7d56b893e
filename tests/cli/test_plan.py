"""`edvit plan` from the command line, in this process."""

import contextlib
import io
import json
import re
import sys
import textwrap
from collections import Counter
from pathlib import Path

import pytest
from cyclopts import CycloptsError
from PIL import Image

from edvit.builder.config import make_config
from edvit.builder.stages.source import open_source
from edvit.bundle import PlanInfo
from edvit.cli.commands import app
from edvit.cli.plan import shortened
from edvit.errors import ConfigError, InfeasibleError, MissingExtraError, ModelError, WeightsError
from edvit.fleet import local_fleet
from edvit.inputs.datasets import read_split
from edvit.inputs.preprocess import Preprocessing
from edvit.plan.cost import model_cost
from edvit.runtime.wire.image_encoding import encode_images
from sounds import encoded, tone
from tiny_build import MAX_MODEL


def run(*arguments: str) -> str:
    model = [] if "--model" in arguments else ["--model", "vit_digits_patch4_8"]
    with contextlib.redirect_stdout(io.StringIO()) as said:
        app(["plan", *model, *arguments], exit_on_error=False, print_error=False, result_action="return_value")
    return said.getvalue()


def test_table_names_every_device_and_class(tmp_path):
    fleet = tmp_path / "fleet.yaml"
    fleet.write_text(
        "name: shelf\ngateway: {uplink_mbps: 100}\ndevices:\n"
        "  - {name: pi-1, profile: raspberry-pi-4b, memory_mb: 180, energy_j: 4.0}\n"
        "  - {name: pi-2, profile: raspberry-pi-4b, memory_mb: 50}\n"
        "  - {name: pi-3, memory_mb: 0.2}\n"
    )
    output = run("--classes", "4", "--groups", "2", "--fleet", str(fleet), "--keep", "2/6")
    lines = output.splitlines()
    assert lines[0].startswith("4 classes → 2 sub-models on 2 devices; predicted ")
    assert "Whole model on pi-1" in lines[1]
    assert "of 180 MB" in lines[1]
    assert max(len(line) for line in lines[2:-1]) <= 80
    rows = [line.split() for line in lines if line.strip().startswith("pi-")]
    assert [row[0] for row in rows] == ["pi-1", "pi-2", "pi-3"]
    assert any("/4 J" in line for line in lines)
    assert "spare" in output
    assert "100 Mbit/s, shared" in " ".join(lines[-3:])


LONG = "jetson-orin-nano-in-the-office-upstairs-1"


@pytest.fixture
def long_names(tmp_path):
    fleet = tmp_path / "fleet.yaml"
    fleet.write_text(
        f"name: f\ndevices:\n  - {{name: {LONG}, memory_mb: 4000, energy_j: 1234.5}}\n  - {{name: b, energy_j: 4}}\n"
    )
    return ("--classes", "100", "--fleet", str(fleet))


def test_a_table_in_a_pipe_has_a_line_for_each_row(long_names, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    lines = run(*long_names).split("\n\n")[1].splitlines()
    assert len(lines) == 3
    (row,) = (line for line in lines if line.startswith(LONG))
    assert row.rstrip().endswith("/1234.5 J")


@pytest.mark.parametrize("columns", [80, 50])
def test_nothing_is_cut_off_a_narrow_table(long_names, monkeypatch, columns):
    monkeypatch.delenv("COLUMNS", raising=False)
    wide = run(*long_names).split("\n\n")[1]
    monkeypatch.setenv("COLUMNS", str(columns))
    narrow = run(*long_names).split("\n\n")[1]
    assert max(len(line) for line in narrow.splitlines()) <= columns
    assert Counter("".join(narrow.split())) == Counter("".join(wide.split()))


def test_the_whole_model_is_put_where_it_fits(tmp_path):
    fleet = tmp_path / "fleet.yaml"

    def whole(*devices):
        fleet.write_text(f"name: f\ndevices: [{', '.join(devices)}]\n")
        return run("--classes", "4", "--fleet", str(fleet)).splitlines()[1].split(" Parameters")[0]

    small, large = "{name: small, memory_mb: 0.5}", "{name: large, memory_mb: 100}"
    assert whole(small, large).endswith(", 2.71 MB, of 100 MB.")
    assert whole("{name: fast, gflops: 1000, memory_mb: 0.5}", large).startswith("Whole model on large: ")
    assert whole("{name: fast, gflops: 1000, memory_mb: 50}", large).startswith("Whole model on fast: ")
    assert whole(small, "{name: larger, memory_mb: 0.6}").endswith("does not fit 600 kB.")


def test_json_is_the_plan_of_the_bundle():
    values = json.loads(run("--data", "digits", "--devices", "5", "--seed", "3", "--json"))
    info = PlanInfo.model_validate_json(json.dumps(values["plan"]))
    assert [line.submodel for line in info.placed] == [0, 1, 2, 3, 4]
    assert sorted(name for submodel in values["submodels"] for name in submodel["classes"]) == list("0123456789")
    assert values["base"]["architecture"]["channels"] == 1
    for line, submodel in zip(info.placed, values["submodels"], strict=True):
        assert submodel["keep"] == "2/6"
        assert line.memory_bytes == submodel["cost"]["peak_memory_bytes"]


def test_encoded_images_are_counted_as_they_are():
    spec = ("--data", "digits", "--img-size", "64", "--devices", "2", "--json")
    raw, webp, jpeg = (json.loads(run(*spec, "--image-encoding", how)) for how in ("raw", "webp", "jpeg"))
    assert raw["input_bytes"] == 64 * 64
    images, how = read_split("digits", "train"), Preprocessing(image_size=64, channels=1, mean=(0,), std=(1,))
    each = [len(encode_images(images.prepared(index, how)[None], "jpeg")) for index in range(0, 1437, 50)]
    assert jpeg["input_bytes"] == pytest.approx(sum(each) / len(each), rel=0.1)
    assert raw["input_bytes"] > webp["input_bytes"]
    assert webp["uplink_s"] / raw["uplink_s"] == pytest.approx(webp["input_bytes"] / raw["input_bytes"])
    assert webp["plan"]["latency_s"] < raw["plan"]["latency_s"]
    assert webp["plan"]["placed"] == raw["plan"]["placed"]
    with pytest.raises(ConfigError, match="--image-encoding needs --data"):
        run("--classes", "4", "--devices", "2", "--image-encoding", "webp")


def test_a_sound_is_sent_as_its_spectrogram(tmp_path):
    for index, word in enumerate(("low", "high")):
        for split in ("train", "test"):
            folder = tmp_path / split / word
            folder.mkdir(parents=True)
            (folder / "a.wav").write_bytes(encoded(tone(300 * (index + 1))))
    spec = ("--data", f"audiofolder:{tmp_path}", "--img-size", "64", "--devices", "2", "--json")
    values = json.loads(run(*spec, "--image-encoding", "jpeg"))
    assert 0 < values["input_bytes"] < 64 * 64
    assert run(*spec[:-1]).splitlines()[0].endswith(" per sound")


def test_what_is_sent_is_counted_as_the_build_prepares_it(tmp_path):
    """timm's interpolation, its own bands and its own length of sound, as the device will see them."""
    for index, word in enumerate(("low", "high")):
        for split in ("train", "test"):
            folder = tmp_path / split / word
            folder.mkdir(parents=True)
            (folder / "a.wav").write_bytes(encoded(tone(300 * (index + 1))))
    options = {"seconds": 0.5, "sample_rate": 8000, "mels": 16}
    flags = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    spec = f"audiofolder:{tmp_path}"
    planned = json.loads(
        run("--data", spec, *flags, "--img-size", "64", "--devices", "2", "--image-encoding", "webp", "--json")
    )
    built = open_source(
        make_config(data=spec, model="vit_digits_patch4_8", image_size=64, fleet=local_fleet(2), **options)
    )
    each = [len(encode_images(built.train.prepared(index, built.preprocessing)[None], "webp")) for index in (0, 1)]
    assert planned["input_bytes"] == round(sum(each) / 2)


def test_int8_is_planned_as_int8_and_placed_where_fp32_does_not_fit(tmp_path):
    of = ("--classes", "4", "--keep", "1")
    sizes = {}
    for precision in ("fp32", "int8"):
        values = json.loads(run(*of, "--devices", "2", "--precision", precision, "--json"))
        sizes[precision] = values["submodels"][0]["cost"]["peak_memory_bytes"]
        assert [one["keep"] for one in values["submodels"]] == ["6/6", "6/6"]
    assert sizes["int8"] < sizes["fp32"] / 2
    fleet = tmp_path / "fleet.yaml"
    memory_mb = (sizes["int8"] + sizes["fp32"]) / 2 / 1e6
    fleet.write_text(f"name: f\ndevices: [{{name: a, memory_mb: {memory_mb}}}, {{name: b, memory_mb: {memory_mb}}}]\n")
    assert "Pruned beyond" in run(*of, "--fleet", str(fleet))
    assert "Pruned beyond" not in run(*of, "--fleet", str(fleet), "--precision", "int8")


def test_weights_that_a_build_would_refuse_are_refused(tmp_path):
    with pytest.raises(WeightsError, match="no such file"):
        run("--data", "digits", "--devices", "2", "--weights", str(tmp_path / "none.pth"))


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_a_precision_is_refused_where_nothing_would_be_in_it(precision):
    with pytest.raises(CycloptsError, match="vgg5 is made of convolutions, which stay in fp32"):
        run("--model", "vgg5", "--classes", "3", "--devices", "2", "--precision", precision)


def test_the_guide_shows_what_the_command_prints(tmp_path, monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "guide" / "planning.md").read_text(encoding="utf-8")
    blocks = [
        textwrap.dedent(block).rstrip("\n") for block in re.findall(r"(?:^    .*\n|^\n(?=    ))+", page, re.MULTILINE)
    ]
    command, fleet, printed = (block.strip("\n") for block in blocks[:3])
    (tmp_path / "shelf.yaml").write_text(fleet)
    monkeypatch.chdir(tmp_path)
    said = [line.rstrip() for line in run(*command.split()[2:]).rstrip("\n").splitlines()]
    assert said == [line.rstrip() for line in printed.splitlines()]


def test_the_seed_draws_the_groups():
    outputs = {run("--classes", "10", "--devices", "5", "--seed", str(seed), "--json") for seed in (0, 0, 1)}
    assert len(outputs) == 2


def test_one_class_is_no_plural():
    assert run("--classes", "1", "--devices", "1").startswith("1 class → 1 sub-model on 1 device; ")


def test_more_devices_than_classes():
    assert run("--classes", "3", "--devices", "5").count("spare") == 2


def test_image_size_and_channels():
    def tokens(*flags: str) -> dict:
        return json.loads(run("--classes", "2", "--devices", "1", "--json", *flags))["base"]["architecture"]

    assert tokens("--img-size", "16", "--channels", "3")["image_size"] == 16
    assert tokens("--img-size", "16", "--channels", "3")["channels"] == 3
    assert tokens("--img-size", "16x24")["image_size"] == [16, 24]


@pytest.mark.parametrize("model", ["vit_digits_patch4_8", "vgg5"])
def test_an_input_that_is_not_square_costs_what_its_pixels_do(model):
    def planned(size: str) -> dict:
        flags = ("--model", model, "--classes", "4", "--devices", "2", "--img-size", size, "--channels", "3", "--json")
        return json.loads(run(*flags))

    wide, tall = planned("16x48"), planned("48x16")
    assert wide["input_bytes"] == 3 * 16 * 48
    assert wide["base"]["cost"] == tall["base"]["cost"]
    assert (
        planned("16")["base"]["cost"]["flops"] < wide["base"]["cost"]["flops"] < planned("48")["base"]["cost"]["flops"]
    )


@pytest.mark.parametrize("data", ["digits", "imagefolder"])
@pytest.mark.parametrize("model", ["vit_digits_patch4_8", "deit_tiny_patch16_224", "vgg5"])
def test_channels_are_those_that_build_would_use(tmp_path, data, model):
    if data == "imagefolder":
        for folder in (tmp_path / split / name for split in ("train", "test") for name in "ab"):
            folder.mkdir(parents=True)
            Image.new("L", (8, 8)).save(folder / "0.png")
        data = f"imagefolder:{tmp_path}"
    planned = json.loads(run("--model", model, "--data", data, "--img-size", "32", "--devices", "2", "--json"))
    source = open_source(make_config(data=data, model=model, image_size=32, fleet=local_fleet(2)))
    assert planned["base"]["architecture"] == json.loads(source.architecture.model_dump_json())


def test_what_was_pruned_beyond_the_ratio_is_said():
    output = run("--classes", "10", "--devices", "1", "--groups", "2", "--keep", "1")
    assert "Pruned beyond" not in output


def test_pruned_more_to_fit(tmp_path):
    fleet = tmp_path / "fleet.yaml"
    fleet.write_text("name: f\ndevices: [{name: a, memory_mb: 4}, {name: b, memory_mb: 1}]\n")
    output = run("--classes", "10", "--fleet", str(fleet), "--keep", "1")
    assert "Pruned beyond the keep ratio of 6/6, to fit the limits: sub-model 1." in output


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        (["--classes", "3"], ConfigError, "either --fleet or --devices"),
        (["--devices", "3"], ConfigError, "either --data or --classes"),
        (["--devices", "3", "--classes", "3", "--data", "digits"], ConfigError, "either --data or --classes"),
        (["--devices", "3", "--classes", "3", "--keep", "0"], ConfigError, "keep ratio '0'"),
        (["--devices", "3", "--classes", "3", "--keep", "7/6"], ConfigError, "keep ratio '7/6'"),
        (["--devices", "3", "--classes", "3", "--keep", "1/0"], ConfigError, "is no number"),
        (["--devices", "3", "--classes", "3", "--keep", "much"], ConfigError, "is no number"),
        (["--devices", "3", "--classes", "3", "--channels", "2"], CycloptsError, "Input should be 1 or 3"),
        (["--devices", "3", "--classes", "3", "--img-size", "7"], ModelError, "no multiple"),
    ],
)
def test_bad_flags(arguments, error, says):
    with pytest.raises(error, match=says):
        run(*arguments)


def test_a_model_that_build_could_not_prune_so_is_not_planned_either():
    unrotatable = ("--model", MAX_MODEL, "--classes", "3", "--devices", "1")
    with pytest.raises(ModelError, match="give --prune channels"):
        run(*unrotatable)
    assert "sub-model" in run(*unrotatable, "--prune", "channels")


def test_infeasible(tmp_path):
    fleet = tmp_path / "fleet.yaml"
    fleet.write_text("name: f\ndevices: [{name: a, memory_mb: 0.01}]\n")
    with pytest.raises(InfeasibleError, match=r"sub-model 0 .* a, the roomiest, lacks"):
        run("--classes", "3", "--fleet", str(fleet))


def test_without_the_build_extra(monkeypatch):
    for name in [name for name in sys.modules if name.startswith(("edvit.builder", "timm"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingExtraError, match=r"edvit\[build\]"):
        run("--classes", "3", "--devices", "1")


def test_the_predicted_base_is_the_models_own():
    from edvit.builder.vit.backbone import create, describe

    model = create("vit_digits_patch4_8", channels=1, classes=10)
    values = json.loads(run("--data", "digits", "--devices", "2", "--json"))
    assert values["base"]["cost"]["params"] == sum(p.numel() for p in model.parameters())
    assert values["base"]["cost"]["flops"] == model_cost(describe(model)).flops


def test_a_hundred_classes_fit_a_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    lines = run("--classes", "100", "--devices", "5").splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 24, "the lines of a terminal"
    assert "more" in "".join(lines)


def test_as_many_classes_are_named_as_there_is_room_for():
    assert shortened(["cat"]) == "cat"
    assert shortened(["cat", "dog"]) == "cat, dog"
    assert shortened(["cat", "dog", "cow"], room=8) == "cat, dog and 1 more"
    assert shortened(["a very long name indeed", "b"], room=5) == "a very long name indeed and 1 more"
