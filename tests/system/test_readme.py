"""The README's own commands, as they stand, on small generated images: plan, build, serve, device, predict, evaluate.

Only what must be small or free is changed: image size and epochs are added, addresses and ports replaced.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import edvit
from edvit.builder.models.origin import find_weights
from free_port import free_endpoint
from shell_words import shell, shims
from waiting import eventually

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
SMALL = {"plan": ["--img-size", "32"], "build": ["--img-size", "32", "--base-epochs", "1", "--recover-epochs", "1"]}
CLASSES = ("bolt", "nut", "pin", "washer")


def line_of(start):
    """The README's first command that begins so."""
    return re.search(rf"^    ({start}.*)$", README, re.MULTILINE).group(1)


def command(name):
    """The README's line `edvit NAME ...`, as words after `edvit`."""
    words = shlex.split(line_of(f"edvit {name}").removeprefix("edvit "))
    return [*words, *SMALL.get(name, [])]


def run(words, folder, **more):
    command, own = [sys.executable, "-m", "edvit", *words], environment(folder, **more)
    return subprocess.run(command, cwd=folder, env=own, capture_output=True, text=True, timeout=600)


def environment(folder, **more):
    """Of a machine whose own settings and keys are in `folder`."""
    own = {"XDG_CACHE_HOME": str(folder / "cache"), "XDG_CONFIG_HOME": str(folder / "config"), "OMP_NUM_THREADS": "1"}
    return {**os.environ, **own, **more}


def write_parts(folder):
    """Flat coloured images with noise: classes that a model can tell apart."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 3)):
        for label, name in enumerate(CLASSES):
            target = folder / "parts" / split / name
            target.mkdir(parents=True)
            for i in range(count):
                pixels = rng.normal(60 * label + 30, 20, size=(40, 40, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(target / f"{i}.png")


def write_weights(path):
    import timm
    from safetensors.torch import save_file

    save_file(timm.create_model("deit_tiny_patch16_224").state_dict(), path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the README's reader stands: data, weights, fleet, and the bundle that was built there."""
    folder = tmp_path_factory.mktemp("readme")
    write_parts(folder)
    write_weights(folder / "deit_tiny.safetensors")
    (folder / "shelf.yaml").write_text(re.search(r"```yaml\n(.*?)```", README, re.DOTALL).group(1))
    for name in ("plan", "build"):
        done = run(command(name), folder)
        assert done.returncode == 0, done.stderr
    assert (folder / "parts-bundle" / "report.html").is_file()
    return folder


def test_it_installs_what_there_is():
    """Extras, the target that makes the wheel, and the wheel's name."""
    project = (ROOT / "pyproject.toml").read_text()
    extras = re.search(r'^    pip install "\.\[(.+?)\]"', README, re.MULTILINE)[1].split(",")
    assert all(re.search(rf"^{extra} = \[", project, re.MULTILINE) for extra in extras)
    assert re.search(r"^    make wheel ", README, re.MULTILINE)
    assert re.search(r"^wheel:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    wheels = set(re.findall(r"edvit-[\w.-]+\.whl", README))
    assert wheels == {f"edvit-{edvit.__version__}-py3-none-any.whl"}
    assert "pip install edvit" not in README.replace("pip install edvit-", ""), "it is in no index"


def test_its_way_to_weights_gives_a_file_that_a_build_reads(tmp_path):
    """As it stands, but for the download."""
    line = re.search(r'^    python -c "(import timm.+)"$', README, re.MULTILINE)[1]
    program = line.replace("pretrained=True", "pretrained=False")
    assert program != line
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, timeout=280)
    name = command("build")[command("build").index("--weights") + 1]
    assert find_weights(tmp_path / name).files == (tmp_path / name,)


@pytest.mark.slow
@pytest.mark.timeout(900)  # its fixture trains; a machine ten times as busy is slow
def test_the_readme_from_plan_to_predict(folder):
    endpoint = free_endpoint().replace("tcp/", "tls/")
    port = free_endpoint().rsplit(":", 1)[1]
    url = f"https://127.0.0.1:{port}"
    serve = [*command("serve"), "--port", port, "--listen", endpoint]
    device = [endpoint if word.startswith("tls/") else word for word in command("device")]
    shims(folder / "bin")
    shell(line_of("edvit keys init"), folder, environment(folder))
    token = shell(line_of("edvit keys token"), folder, environment(folder)).strip()
    for name in ("pi-1", "pi-2"):
        shell(line_of("ssh pi-1").replace("pi-1", name), folder, environment(folder))
    access = {"EDVIT_TOKEN": token, "EDVIT_CA": str(folder / "config" / "edvit" / "keys" / "ca.crt")}
    devices = [[name if word == "pi-1" else word for word in device] for name in ("pi-1", "pi-2")]
    started = [(serve, environment(folder))]
    for name, words in zip(("pi-1", "pi-2"), devices, strict=True):
        # They run on this machine, each with the keys that its `ssh` command made.
        own = environment(folder, XDG_CONFIG_HOME=str(folder / name))
        started.append(([*words, "--cache", str(folder / "cache")], own))
    processes = [
        subprocess.Popen([sys.executable, "-m", "edvit", *words], cwd=folder, stdout=subprocess.PIPE, env=own)
        for words, own in started
    ]
    try:
        photo = folder / "parts" / "test" / "nut" / "0.png"
        (folder / "photo.jpg").write_bytes(photo.read_bytes())

        def answer():
            asked = [url if word.startswith("http") else word for word in command("predict")]
            done = run([*asked, "--json"], folder, **access)
            return done.stdout if done.returncode == 0 and '"degraded":false' in done.stdout.replace(" ", "") else ""

        assert any(name in eventually(answer, timeout_s=300) for name in CLASSES)
        asked = [url if word.startswith("http") else word for word in command("evaluate")]
        done = run(asked, folder, **access)
        assert done.returncode == 0, done.stderr
        assert "accuracy" in done.stdout
    finally:
        for process in processes:
            process.send_signal(signal.SIGTERM)
        codes = [process.wait(timeout=30) for process in processes]
        for process in processes:
            process.stdout.close()
    assert codes == [0, 0, 0]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_finished_build_is_not_done_again(folder):
    before = {path: path.stat().st_mtime_ns for path in (folder / "parts-bundle-work").glob("*/done.json")}
    assert before
    done = run(command("build"), folder)
    assert done.returncode == 0, done.stderr
    assert before == {path: path.stat().st_mtime_ns for path in (folder / "parts-bundle-work").glob("*/done.json")}
