"""edvit's wheel and the wheels that it needs, on an emulated Cortex-A72: `make test-pi4` runs these."""

from __future__ import annotations

import contextlib
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

import edvit
from device_processes import DeviceProcess
from edvit.builder.export.onnx_file import export_submodel, quantise_submodel
from edvit.builder.pipeline import build
from edvit.builder.vit import backbone
from edvit.builder.vit.backbone import FeatureExtractor
from edvit.errors import UnavailableError
from edvit.fleet import local_fleet
from edvit.inputs.datasets.digits import read_digits
from edvit.plan.keep import heads_pruned_at, parse_keep
from edvit.runtime.engine.submodel import SubModelEngine
from edvit.runtime.gateway.gateway import Gateway
from edvit.runtime.gateway.gather import Expected, gather
from edvit.runtime.predictor import LocalPredictor
from edvit.runtime.wire.zenoh_transport import ZenohTransport
from edvit.shape.vit import pruned_widths
from emulated_pi4 import CannotRunError, emulated_pi4
from free_port import free_endpoint
from tiny_build import tiny_config

BASE = "deit_tiny_patch16_224"
GREY = (0.5, 0.5, 0.5)
ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
PATIENCE_S = 240
"""An emulated processor is 10 to 50 times slower, and the machine may be busy."""
TOLERANCE = 1e-3
"""Largest difference of a feature between the two processors."""
ROUNDED_OTHERWISE = 0.05
"""Part of its length by which an int8 feature may move where an activation lies between two steps: the last bits
of float32 then decide the step. Changing the last bits of the constants does the same on x86 alone."""


@pytest.fixture(scope="session")
def pi4(tmp_path_factory):
    try:
        return emulated_pi4(ROOT / ".pi4", tmp_path_factory.mktemp("pi4"))
    except CannotRunError as problem:
        pytest.skip(str(problem))


def how_it_ended(done):
    """What to say of a process: its last line, and what it died of."""
    died = f"died of {signal.Signals(-done.returncode).name}" if done.returncode < 0 else f"exit {done.returncode}"
    return f"{died} after: {(done.stdout.strip().splitlines() or ['nothing'])[-1]}\n{done.stderr[-2000:]}"


def test_an_instruction_that_a_cortex_a72_lacks_ends_the_process(pi4):
    """Otherwise none of the others says anything."""
    program = HERE / "lse_atomics.py"
    newer, a72 = pi4.run(program, cpu="max"), pi4.run(program)
    assert newer.stdout.split() == ["40", "42"], how_it_ended(newer)
    assert a72.returncode == -signal.SIGILL, how_it_ended(a72)


def test_every_package_of_a_device_imports_and_works(pi4):
    done = pi4.run(HERE / "use_packages.py", timeout=PATIENCE_S)
    assert done.returncode == 0, how_it_ended(done)
    used = done.stdout.split()
    assert {"numpy", "onnxruntime", "eclipse-zenoh", "pillow", "pydantic", "cryptography", "PyYAML"} <= set(used)


def test_edvit_starts(pi4):
    done = pi4.run("-m", "edvit", "--version", timeout=PATIENCE_S)
    assert done.returncode == 0, how_it_ended(done)
    assert edvit.__version__ in done.stdout


@pytest.fixture(scope="session")
def third_of_deit_tiny(tmp_path_factory):
    """Exported as a build exports it, with random weights, at 64 pixels; and the length of its features."""
    torch.manual_seed(0)
    base = backbone.describe(backbone.create(BASE, image_size=64, classes=0))
    widths = pruned_widths(base.widths, heads_pruned_at(parse_keep("1/3"), base.heads))
    model = backbone.create(BASE, image_size=64, classes=0, widths=widths, rotated=True)
    path = tmp_path_factory.mktemp("deit") / "fp32.onnx"
    export_submodel(FeatureExtractor(model, GREY, GREY).eval(), torch.from_numpy(random_images()[:4]), path)
    return path, widths.dim


def random_images():
    return np.random.default_rng(1).integers(0, 256, (32, 3, 64, 64), dtype=np.uint8)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_sub_model_of_real_size_gives_the_features_of_x86(pi4, third_of_deit_tiny, precision, tmp_path, capsys):
    exported, dim = third_of_deit_tiny
    images, path = random_images(), tmp_path / "model.onnx"
    shutil.copy(exported, path)
    if precision == "int8":
        quantise_submodel(path, torch.from_numpy(images[:4]))
    np.save(tmp_path / "images.npy", images)
    done = pi4.run(HERE / "run_submodel.py", path, tmp_path / "images.npy", dim, tmp_path / "features.npy")
    assert done.returncode == 0, how_it_ended(done)
    x86 = SubModelEngine(path, channels=3, image_size=64, feature_dim=dim).run_in_chunks(images)
    there = np.load(tmp_path / "features.npy")
    differences = np.abs(there - x86).max(axis=1)
    moved = np.linalg.norm(there - x86, axis=1) / np.linalg.norm(x86, axis=1)
    with capsys.disabled():
        print(f"\n{BASE}, a third, {precision}: {(differences > TOLERANCE).sum()} of {len(images)} images over", end="")
        print(f" {TOLERANCE}; median {np.median(differences):.2g}, largest {differences.max():.2g}", end="")
        print(f" in features up to {np.abs(x86).max():.3g}; moved by {moved.max():.2g} of its length at most")
    if precision == "fp32":
        assert differences.max() <= TOLERANCE
    else:
        assert np.median(differences) <= TOLERANCE
        assert moved.max() <= ROUNDED_OTHERWISE


@pytest.fixture(scope="session")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("tiny") / "work"


@contextlib.contextmanager
def agent(pi4, *arguments):
    """`edvit device` on the Pi 4."""
    device = DeviceProcess(arguments, edvit=pi4.command("-m", "edvit"), environment=pi4.environment)
    try:
        yield device
    finally:
        device.kill()


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_an_agent_gives_the_features_of_x86(pi4, work, precision, tmp_path, capsys):
    config = tiny_config(fleet=local_fleet(1), groups=2, precision=precision, recover_epochs=0, views=2, baseline=False)
    bundle, _ = build(config, tmp_path / "bundle", work=work)
    manifest, fleet = bundle.manifest, bundle.manifest.plan.fleet
    images = read_digits("test").pixels[:16, None]
    endpoint, (here,) = free_endpoint(), fleet.devices
    arguments = ["--name", here.name, "--fleet", fleet.name, "--connect", endpoint, "--cache", tmp_path / "cache"]
    expected = {submodel.id: Expected(here.name, submodel.feature_dim) for submodel in manifest.submodels}
    with (
        contextlib.closing(ZenohTransport(listen=[endpoint], scouting=False)) as transport,
        contextlib.closing(Gateway(bundle, transport, deadline_s=PATIENCE_S)) as gateway,
        agent(pi4, *arguments) as device,
    ):
        try:
            gateway.wait_ready(PATIENCE_S)
        except UnavailableError as error:
            device.kill()
            pytest.fail(f"{error}\n{device.process.returncode=}\n{''.join(device.lines + device.errors)}")
        found = gather(
            transport.ask_each, fleet.name, bundle.digest, images, expected, encoding="raw", deadline_s=PATIENCE_S
        )
        answer = gateway.predict(images)
    assert not found.problems
    assert set(found.features) == set(expected)
    for submodel in manifest.submodels:
        engine = SubModelEngine(
            bundle.model_path(submodel.model),
            channels=manifest.preprocessing.channels,
            image_size=manifest.preprocessing.image_size,
            feature_dim=submodel.feature_dim,
        )
        with capsys.disabled():
            there, x86 = found.features[submodel.id], engine.run_in_chunks(images)
            difference, scale = float(np.abs(there - x86).max()), float(np.abs(x86).max())
            print(f"\nover the network, {precision}, sub-model {submodel.id}: {difference:.2g} in up to {scale:.3g}")
            assert difference <= TOLERANCE
    assert not answer.missing
    assert np.abs(answer.logits - LocalPredictor(bundle).run(images).logits).max() <= 10 * TOLERANCE
