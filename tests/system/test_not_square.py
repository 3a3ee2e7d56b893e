"""Pictures wider than high, built into a bundle of that shape, served by processes, and asked about over HTTP."""

import io
import json
import urllib.request

import numpy as np
import pytest
from PIL import Image

from edvit.bundle import read_bundle
from edvit.runtime.http.body import NPY, to_npy
from edvit.runtime.predictor import LocalPredictor
from serving import run, serving

BUILD = ["--model", "vit_digits_patch4_8", "--img-size", "32x48", "--augment", "glyphs", "--devices", "2"]
BUILD += ["--base-epochs", "60", "--recover-epochs", "20", "--no-baseline"]
WHERE = {"left": (20, 40), "middle": (80, 40), "right": (140, 40)}
"""Where the bright spot of a class is, x and y; a centred square of a picture holds that of the middle alone."""


def picture(spot, seed):
    """160 x 96 pixels of noise, with a bright spot."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 90, (96, 160, 3), dtype=np.uint8)
    x, y = np.array(spot) + rng.integers(-6, 7, 2)
    pixels[y - 14 : y + 14, x - 12 : x + 12] += 150
    return Image.fromarray(pixels)


def write(folder, pictures, first):
    for number, (name, spot) in enumerate(WHERE.items()):
        (folder / name).mkdir(parents=True)
        for i in range(first, first + pictures):
            picture(spot, (number, i)).save(folder / name / f"{i}.png")


def posted(url, body, media_type):
    request = urllib.request.Request(f"{url}/predict", body, {"Content-Type": media_type})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_wide_picture_is_seen_whole(tmp_path):
    write(tmp_path / "spots" / "train", 24, 0)
    write(tmp_path / "spots" / "test", 6, 24)
    data = f"imagefolder:{tmp_path / 'spots'}"
    built = run("build", "--data", data, *BUILD, "-o", tmp_path / "bundle", timeout=1000)
    assert built.returncode == 0, built.stderr
    assert "3 classes, 32×48, " in built.stdout

    bundle = read_bundle(tmp_path / "bundle")
    assert bundle.manifest.preprocessing.shape == (3, 32, 48)
    assert bundle.manifest.flags["image_size"] == bundle.manifest.config["image_size"] == [32, 48]
    assert "uint8 [3, 32, 48]" in run("inspect", tmp_path / "bundle").stdout
    assert "input 32 × 48 × 3" in (tmp_path / "bundle" / "report.html").read_text()

    local = LocalPredictor(bundle)
    with serving(tmp_path / "bundle", "--local", "--image-encoding", "webp") as served:
        for number, spot in enumerate(WHERE.values()):
            image, file = picture(spot, (number, 99)), io.BytesIO()
            image.save(file, "PNG")
            here = local.predict(image)
            answer = posted(served.url, file.getvalue(), "image/png")
            assert answer["label"] == here.label
            array = np.asarray(image.resize((48, 32))).transpose(2, 0, 1)
            answer = posted(served.url, to_npy(array), NPY)
            assert answer["label"] == local.predict(array).label
        photo = tmp_path / "spots" / "test" / "left" / "24.png"
        asked = run("predict", served.url, photo, "--json")
        assert json.loads(asked.stdout)["label"] == local.predict(photo).label, asked.stderr
        over_http = json.loads(run("evaluate", served.url, "--data", data, "--json").stdout)
        within = json.loads(run("evaluate", tmp_path / "bundle", "--data", data, "--json").stdout)
        assert over_http["accuracy"] == within["accuracy"] >= 0.8  # one class alone has its spot in a centred square
        assert over_http["degraded"] == 0
