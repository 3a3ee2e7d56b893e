"""`edvit evaluate` of a bundle's folder against what the build measured."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest

from edvit.builder.pipeline import build
from edvit.cli.access import AccessOptions
from edvit.cli.evaluate import answering
from edvit.inputs.audio import Spectrogram
from edvit.inputs.datasets import read_split
from edvit.inputs.preprocess import decode_file
from edvit.runtime.evaluation import evaluate
from edvit.runtime.predictor import LocalPredictor
from sounds import encoded, tone
from tiny_build import TinyBuild, tiny_config
from tiny_bundle import write_tiny_bundle


@pytest.fixture(scope="module", params=["fp32", "int8", "int4"])
def finished(request, tiny_build, tmp_path_factory):
    """A build of the digits in each precision; int8 and int4 from the same recovered sub-models."""
    if request.param == "fp32":
        return tiny_build
    folder = tmp_path_factory.mktemp(request.param)
    shutil.copytree(tiny_build.work, folder / "work")
    bundle, built = build(tiny_config(precision=request.param), folder / "bundle", work=folder / "work")
    return TinyBuild(bundle, built, folder / "work")


def test_it_agrees_with_the_build_to_the_last_image(finished, edvit):
    with answering(str(finished.bundle.path), AccessOptions()) as (classes, ask):
        found = evaluate(read_split("digits", "test").with_classes(classes), ask)
    assert np.array_equal(found.predicted, finished.built.test.fused.argmax(axis=1))
    code, out, _ = edvit("evaluate", finished.bundle.path, "--data", "digits", "--json")
    assert code == 0
    assert json.loads(out)["accuracy"] == finished.bundle.manifest.metric("fused")


def test_a_batch_is_answered_as_its_images_are_alone(finished):
    """The report's scores are the very bits that a device gives for one image."""
    pixels, test = finished.built.data.validation.pixels(slice(0, 100)), finished.built.test
    predictor = LocalPredictor(finished.bundle)
    batch = predictor.predict(pixels)
    alone = np.concatenate([predictor.predict(image[None]).logits for image in pixels])
    assert batch.logits == pytest.approx(alone, rel=1e-4, abs=1e-4)
    assert np.array_equal(batch.indices, alone.argmax(axis=1))
    source, how = read_split("digits", "test"), finished.bundle.manifest.preprocessing
    images = [decode_file(source.encoded(index), how)[None] for index in range(50)]
    asked = np.concatenate([predictor.predict(image).logits for image in images])
    assert asked.tobytes() == test.fused[:50].tobytes()


def test_sounds_are_called_sounds(edvit, tmp_path):
    for index, word in enumerate(("class-0", "class-1")):
        for split in ("train", "test"):
            folder = tmp_path / "words" / split / word
            folder.mkdir(parents=True)
            (folder / "a.wav").write_bytes(encoded(tone(300 * (index + 1), 0.2)))
    bundle = write_tiny_bundle(tmp_path / "bundle", classes=2)
    how = bundle.manifest.preprocessing.model_copy(update={"spectrogram": Spectrogram(seconds=0.2)})
    manifest = bundle.manifest.model_copy(update={"preprocessing": how})
    (bundle.path / "manifest.json").write_text(manifest.model_dump_json())
    code, out, err = edvit("evaluate", bundle.path, "--data", f"audiofolder:{tmp_path / 'words'}")
    assert (code, err) == (0, "")
    assert re.search(r"accuracy +\d+\.\d+% of 2 sounds", out)
    assert "image" not in out
    photo = tmp_path / "words" / "test" / "class-0" / "a.wav"
    photo.write_bytes(b"no sound")
    code, _, err = edvit("evaluate", bundle.path, "--data", f"audiofolder:{tmp_path / 'words'}")
    assert code == 2
    assert "sound" in err
    assert "image" not in err
