"""`edvit build` from the command line: what a user types wrong, and one small build to the end."""

import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from edvit.builder.vit import backbone
from edvit.bundle import read_bundle
from serving import run

MODEL = ("--model", "vit_digits_patch4_8", "--img-size", "16", "--channels", "3")


def image_folder(root, classes=3, images=12):
    """Noise of a colour of its own for each class."""
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for label in range(classes):
            folder = root / split / f"part-{label}"
            folder.mkdir(parents=True)
            for i in range(images):
                pixels = rng.integers(0, 120, (16, 16, 3), dtype=np.uint8)
                pixels[..., label] += 130
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return root


@pytest.fixture
def folder(tmp_path):
    return image_folder(tmp_path / "parts", images=3)


@pytest.fixture
def refused(edvit, tmp_path):
    """Runs `edvit build`, which must end in one line and leave no bundle; returns the line."""

    def build(*arguments, out=None):
        target = tmp_path / "out" if out is None else out
        code, said, line = edvit("build", *arguments, "-o", target)
        assert code == 2
        assert line.startswith("edvit: ")
        assert line.count("\n") == 1
        assert "Traceback" not in said + line
        assert not (tmp_path / "out").exists()
        return line

    return build


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--devices", "2", "--data", "nonsense"], "unknown data spec 'nonsense'; known: digits"),
        (["--devices", "2", "--data", "imagefolder:"], "imagefolder needs a folder"),
        (["--devices", "2", "--data", "imagefolder:/nowhere/at/all"], "/nowhere/at/all: no such folder"),
        (["--devices", "2", "--data", "cifar10"], "--data-root"),
        (["--devices", "2", "--model", "vit_digit_patch4_8"], "did you mean vit_digits_patch4_8"),
        (["--devices", "2", "--model", "vit_tiny_patch16_223"], "did you mean vit_tiny_patch16_224"),
        (
            ["--devices", "2", "--model", "swin_tiny_patch4_window7_224"],
            "its class in timm is SwinTransformer",
        ),
        (["--devices", "2", "--model", "convnext_tiny"], "cannot be split: its class in timm is ConvNeXt"),
        (["--devices", "2", "--img-size", "9"], "no multiple of vit_digits_patch4_8's patch of 4 pixels; use 8 or 12"),
        (
            ["--devices", "2", "--img-size", "9x20"],
            "image size 9x20 is no multiple of vit_digits_patch4_8's patch of 4 pixels; use 8x20 or 12x20",
        ),
        (["--devices", "2", "--img-size", "0"], "--img-size: 0 is out of range: give 1 to 4096 pixels for each side"),
        (["--devices", "2", "--img-size", "96x9000"], "--img-size: 96x9000 is out of range: give 1 to 4096 pixels"),
        (
            ["--devices", "2", "--img-size", "96*160"],
            "--img-size: 96*160 is no image size: give pixels as 96, or as HEIGHTxWIDTH",
        ),
        (
            ["--devices", "2", "--model", "vgg5", "--img-size", "8x32"],
            "image size 8x32 is too small for vgg5; give at least 16",
        ),
        (["--devices", "2", "--channels", "2"], "--channels: Input should be 1 or 3"),
        ([], "give either --fleet or --devices"),
        (["--devices", "2", "--fleet", "shelf.yaml"], "give either --fleet or --devices"),
        (["--fleet", "/no/shelf.yaml"], "/no/shelf.yaml: no such file"),
        (["--devices", "2", "--keep", "many"], "keep ratio 'many' is no number"),
        (["--devices", "2", "--keep", "7/6"], "keep ratio '7/6' is not above 0 and at most 1"),
        (["--devices", "2", "--keep", "0"], "keep ratio '0' is not above 0"),
        (
            ["--devices", "2", "--force", "everything"],
            '"everything" for --force. Choose from: "data", "base"',
        ),
        (["--devices", "2", "--validation", "0.9"], "--validation: Input should be less than 0.5"),
        (["--devices", "2", "--recover-lr", "0"], "--recover-lr: Input should be greater than 0"),
        (["--devices", "2", "--without", "all"], "--without: Input should be 'rotation'"),
        (["--devices", "2", "--weights", "/no/such.pth"], "/no/such.pth: no such file"),
    ],
)
def test_a_wrong_word_is_one_line(refused, arguments, said):
    assert said in refused(*arguments)


@pytest.mark.parametrize(
    "arguments",
    [["--devices", "0"], ["--devices", "2", "--criterion", "luck"], ["--devices", "2", "--batch-size", "1"]],
)
def test_options_out_of_range_are_refused_by_name(edvit, tmp_path, arguments):
    code, _, said = edvit("build", *arguments, "-o", tmp_path / "out")
    assert code == 2
    assert "Traceback" not in said
    assert arguments[-2] in said
    assert list(tmp_path.iterdir()) == []


# --- weights -----------------------------------------------------------------------------------------------


class Code:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.system, (f"touch {self.path}",))


def weights_of(name, **shape):
    return backbone.create(name, **{"channels": 1, "classes": 10, **shape}).state_dict()


def test_weights_of_another_architecture(refused, tmp_path):
    save_file(weights_of("deit_tiny_patch16_224", image_size=32, classes=0), tmp_path / "w.safetensors")
    said = refused("--devices", "2", "--weights", tmp_path / "w.safetensors")
    assert "not weights of vit_digits_patch4_8: " in said
    assert "was expected" in said


def test_a_pickle_with_code_is_not_run(refused, tmp_path):
    harm = tmp_path / "harm"
    with (tmp_path / "w.pth").open("wb") as file:
        pickle.dump({"state": Code(harm)}, file)
    refused("--devices", "2", "--weights", tmp_path / "w.pth")
    torch.save({"state": Code(harm)}, tmp_path / "w.pt")
    assert "holds Python objects or code" in refused("--devices", "2", "--weights", tmp_path / "w.pt")
    assert not harm.exists()


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.parametrize("size", [0, 100, 50_000])
def test_truncated_weights(refused, tmp_path, suffix, size):
    path = tmp_path / f"w.{suffix}"
    state = weights_of("vit_digits_patch4_8")
    save_file(state, path) if suffix == "safetensors" else torch.save(state, path)
    path.write_bytes(path.read_bytes()[:size])
    assert "get it again" in refused("--devices", "2", "--weights", path)


# --- image folders -----------------------------------------------------------------------------------------


def test_a_class_folder_with_no_images(refused, folder):
    (folder / "train" / "part-9").mkdir()
    said = refused("--devices", "2", *MODEL, "--data", f"imagefolder:{folder}")
    assert f"{folder / 'train' / 'part-9'}: a class folder with no images" in said


def test_an_unreadable_image(refused, folder):
    bad = folder / "train" / "part-1" / "1.png"
    bad.write_bytes(b"hello")
    assert str(bad) in refused("--devices", "2", *MODEL, "--data", f"imagefolder:{folder}")


def test_an_image_folder_without_train(refused, folder):
    (folder / "train").rename(folder / "lessons")
    said = refused("--devices", "2", *MODEL, "--data", f"imagefolder:{folder}")
    assert f"{folder}: has no train/" in said


def test_an_image_folder_without_test_is_refused_before_anything_is_decoded(refused, folder, tmp_path):
    (folder / "test").rename(folder.parent / "testing")
    said = refused("--devices", "2", *MODEL, "--data", f"imagefolder:{folder}")
    assert f"{folder}: has no test/" in said
    assert not list(tmp_path.glob("*-work"))


def test_no_model_for_an_image_folder(refused, folder):
    assert "needs a --model" in refused("--devices", "2", "--data", f"imagefolder:{folder}")


# --- places ------------------------------------------------------------------------------------------------


def test_an_out_folder_that_is_no_bundle_is_left_alone(refused, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years")
    assert "exists and is no bundle; choose another -o" in refused("--devices", "2", out=mine)
    assert "exists and is no bundle" in refused("--devices", "2", out=mine / "thesis.txt")
    assert (mine / "thesis.txt").read_text() == "years"
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_the_current_folder_is_not_taken_for_a_bundle(refused, tmp_path, monkeypatch):
    (tmp_path / "notes.txt").write_text("x")
    monkeypatch.chdir(tmp_path)
    assert "exists and is no bundle" in refused("--devices", "2", out=".")
    assert "exists and is no bundle" in refused("--devices", "2", out="/")


def test_a_work_folder_that_cannot_be_made(refused, tmp_path):
    (tmp_path / "file").write_text("x")
    assert "cannot be made" in refused("--devices", "2", "--work", tmp_path / "file" / "work")


def test_what_is_built_does_not_lie_among_the_classes(refused, folder, tmp_path):
    """A second run would take the work folder of the first one for a class, and could not go on."""
    classes = folder / "train"
    data = ("--devices", "2", *MODEL, "--data", f"imagefolder:{classes}")
    outside = f"would be read as a part of the data in {classes}; give a folder outside it, such as {folder}/"
    assert f"-o {classes / 'out'}: {outside}out\n" in refused(*data, out=classes / "out")
    assert f"--work {classes / 'mine'}: {outside}mine\n" in refused(*data, "--work", classes / "mine")
    (folder / "test").rename(folder / "x-work")
    also = ("--devices", "2", *MODEL, "--data", f"imagefolder:{folder / 'x-work'}")
    assert f"--work {folder / 'x-work'}: would be read" in refused(*also, out=folder / "x")
    assert sorted(path.name for path in folder.rglob("*") if path.is_dir() and "part-" not in path.name) == [
        "train",
        "x-work",
    ], "nothing was written"


def test_what_is_built_does_not_lie_among_the_unlabelled_images(refused, folder, tmp_path):
    unlabelled = tmp_path / "more"
    (unlabelled / "deep").mkdir(parents=True)
    data = ("--devices", "2", *MODEL, "--data", f"imagefolder:{folder}", "--unlabeled", unlabelled)
    outside = f"would be read as a part of the data in {unlabelled}; give a folder outside it, such as {tmp_path}/"
    inner = unlabelled / "deep" / "built"
    assert f"-o {inner}: {outside}built\n" in refused(*data, out=inner)
    assert f"--work {inner}: {outside}built\n" in refused(*data, "--work", inner)
    assert [path.name for path in unlabelled.rglob("*")] == ["deep"], "nothing was written"


def test_an_infeasible_fleet_says_what_lacks(refused, tmp_path):
    (tmp_path / "shelf.yaml").write_text(
        "name: shelf\ndevices:\n  - {name: chip-1, memory_mb: 0.01}\n  - {name: chip-2, memory_mb: 0.02}\n"
    )
    said = refused("--fleet", tmp_path / "shelf.yaml")
    assert "fits on no device" in said
    assert "chip-2, the roomiest, lacks" in said
    assert "raise memory_mb" in said
    assert [path.name for path in tmp_path.iterdir()] == ["shelf.yaml"]


# --- to the end --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_image_folder_becomes_a_bundle_that_other_commands_read(tmp_path):
    root, out = image_folder(tmp_path / "parts"), tmp_path / "bundle"
    arguments = [*MODEL, "--devices", "4", "--base-epochs", "12", "--recover-epochs", "4", "--no-baseline"]
    arguments += ["--keep", "2/6", "--augment", "none", "--batch-size", "8"]
    arguments += ["--groups", "2", "--workers", "1"]
    command = [sys.executable, "-m", "edvit", "build", *arguments, "--data", f"imagefolder:{root}", "-o", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=250, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    stages = [line.split()[1] for line in lines if line.startswith("✓")]
    assert stages == ["data", "base", "partition", "prune", "recover", "fuse", "test", "verdict", "bundle"]
    assert lines[-1] == f"Next: edvit serve {out} --local"

    manifest = read_bundle(out).manifest
    assert manifest.data.classes == ("part-0", "part-1", "part-2")
    assert sorted(len(submodel.classes) for submodel in manifest.submodels) == [1, 2]
    placed = {line.device for line in manifest.plan.placed}
    assert len(placed) == 2, "two of the four devices stay free"
    assert manifest.flags["base_epochs"] == 12
    assert manifest.flags["image_size"] == 16
    assert not {"out", "work", "workers", "force", "fleet"} & set(manifest.flags)
    assert manifest.metric("fused") > 0.6

    inspected = run("inspect", out)
    assert inspected.returncode == 0, inspected.stderr
    assert "part-2" in inspected.stdout
    evaluated = run("evaluate", out, "--data", f"imagefolder:{root}", "--json")
    assert evaluated.returncode == 0, evaluated.stderr
    assert json.loads(evaluated.stdout)["accuracy"] == pytest.approx(manifest.metric("fused"))
