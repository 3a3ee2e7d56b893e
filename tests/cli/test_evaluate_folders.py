"""`edvit evaluate` on a folder that has no splits: it takes the images that the build left for testing."""

import json

import pytest
from PIL import Image

from edvit.bundle import MANIFEST
from tiny_bundle import write_tiny_bundle


@pytest.fixture
def built(tmp_path):
    """A bundle that says it was built from a folder of two classes, 30 images of ten speakers in each, by speaker."""
    bundle = write_tiny_bundle(tmp_path / "bundle")
    classes = bundle.manifest.data.classes[:2]
    data = tmp_path / "data"
    for label, name in enumerate(classes):
        (data / name).mkdir(parents=True)
        for speaker in range(10):
            for clip in range(3):
                Image.new("RGB", (8, 8), (label * 99, speaker, clip)).save(data / name / f"s{speaker}_{clip}.png")
    path = bundle.path / MANIFEST
    manifest = json.loads(path.read_text())
    manifest["data"]["spec"] = f"imagefolder:{data}"
    manifest["config"] = {"split_by": r"/(s\d)_"}
    path.write_text(json.dumps(manifest))
    return bundle.path, data


def test_a_bundle_knows_how_its_own_folder_was_split(edvit, built):
    bundle, data = built
    code, out, err = edvit("evaluate", bundle, "--data", f"imagefolder:{data}", "--json")
    assert code == 0, err
    assert "whole groups of --split-by" in err
    assert json.loads(out)["images"] == 12


def test_of_another_folder_it_knows_nothing_and_may_be_told(edvit, built):
    bundle, data = built
    other = data.rename(data.with_name("other"))
    _, _, err = edvit("evaluate", bundle, "--data", f"imagefolder:{other}", "--json")
    assert "by the hash of each file's name" in err
    _, _, err = edvit("evaluate", bundle, "--data", f"imagefolder:{other}", "--split-by", r"/(s\d)_", "--json")
    assert "whole groups of --split-by" in err


def test_a_damaged_file_is_named(edvit, built):
    bundle, data = built
    for path in data.rglob("*.png"):
        path.write_text(f"no picture of {path}")
    code, _, err = edvit("evaluate", bundle, "--data", f"imagefolder:{data}")
    assert code == 2
    assert ".png: not an image file" in err
