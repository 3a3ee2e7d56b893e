"""Convolutional and spiking networks go through the same stages, bundle and devices as ViTs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from edvit.builder.config import make_config
from edvit.builder.pipeline import build
from edvit.bundle import read_bundle
from edvit.errors import ConfigError, ModelError
from edvit.fleet import local_fleet
from edvit.runtime.predictor import LocalPredictor

torch.set_num_threads(1)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["vgg5", "spiking_vgg5"])
def test_a_bundle_of_it_answers(model, tmp_path):
    settings = {"model": model, "image_size": 16, "fleet": local_fleet(2), "workers": 1, "calibration": 32}
    short = {"base_epochs": 3, "recover_epochs": 2, "views": 1, "keep": "8/16", "baseline": False}
    bundle, built = build(make_config(**settings, **short), tmp_path / "bundle")
    manifest = bundle.manifest
    assert manifest.config["prune"] == "channels"
    assert manifest.config["criterion"] == "apoz"
    assert manifest.metric("fused") > 0.5
    assert all(submodel.params < manifest.base.params / 3 for submodel in manifest.submodels)
    rows = np.flatnonzero(built.test.labels >= 0)[:16]
    images = np.zeros((len(rows), *manifest.preprocessing.shape), np.uint8)
    assert LocalPredictor(read_bundle(bundle.path)).predict(images).logits.shape == (len(rows), 10)
    shown = subprocess.run(
        [sys.executable, "-m", "edvit", "inspect", str(bundle.path)], capture_output=True, text=True, check=True
    )
    assert "filters" in shown.stdout
    assert "Filters" in (bundle.path / "report.html").read_text()


def test_a_plan_of_one_reads_no_model():
    command = "plan --model vgg9 --classes 10 --devices 5 --keep 4/16 --json"
    done = subprocess.run([sys.executable, "-m", "edvit", *command.split()], capture_output=True, text=True, check=True)
    plan = json.loads(done.stdout)
    assert {submodel["keep"] for submodel in plan["submodels"]} == {"4/16"}
    assert plan["submodels"][0]["widths"]["filters"][0] == 16


def test_what_a_convnet_cannot_do_is_said_in_one_line():
    def refused(**settings):
        with pytest.raises(ConfigError) as caught:
            make_config(fleet=local_fleet(2), **settings)
        return str(caught.value)

    assert "vgg9 has no residual stream to rotate" in refused(model="vgg9", prune="subspace")
    assert "apoz" in refused(model="vgg9", criterion="fisher-kl")
    assert "apoz" in refused(model="deit_tiny_patch16_224", criterion="apoz", prune="channels")
    assert "only channels are scored" in refused(model="deit_tiny_patch16_224", criterion="apoz")
    config = make_config(model="vgg9", image_size=8, fleet=local_fleet(2))
    with pytest.raises(ModelError, match="too small for vgg9"):
        build(config, Path("never"))
