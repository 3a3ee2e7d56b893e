"""`edvit doctor` as a command, at a real gateway with keys."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from device_processes import EDVIT
from edvit.fleet import local_fleet
from free_port import free_port
from serving import serving
from tiny_bundle import write_tiny_bundle
from waiting import eventually


def doctor(*words, environment):
    return subprocess.run(
        [*EDVIT, "doctor", *map(str, words)], capture_output=True, text=True, timeout=280, env=environment
    )


def states(done):
    return {check["name"]: check["state"] for check in json.loads(done.stdout)["checks"]}


def test_a_gateway_with_keys_and_a_device_of_it(tmp_path, monkeypatch):
    bundle = write_tiny_bundle(tmp_path / "bundle", submodels=1, classes=4, fleet=local_fleet(1))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    keys = tmp_path / "config" / "edvit" / "keys"

    def edvit(line, **options):
        command = line.replace("edvit", f"{sys.executable} -m edvit")
        return subprocess.run(["bash", "-ec", command], check=True, capture_output=True, text=True, **options).stdout

    edvit("edvit keys init")
    edvit("edvit keys request dev-1 | edvit keys issue | edvit keys accept")
    token = edvit("edvit keys token me --scope watch").strip()
    environment = {**os.environ, "EDVIT_CA": str(keys / "ca.crt"), "EDVIT_TOKEN": token}
    listen = f"tls/127.0.0.1:{free_port()}"
    here = ["--cache", tmp_path / "cache", "--cache-limit", 1, "--name", "dev-1", "--connect", listen]
    with serving(bundle.path, "--host", "0.0.0.0", "--listen", listen) as served:
        command = [*EDVIT, "device", "--name", "dev-1", "--connect", listen, "--cache", str(tmp_path / "cache")]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as device:
            try:
                words = [*here, "--url", served.url, "--json"]
                done = eventually(
                    lambda: (said := doctor(*words, environment=environment)) and "warning" not in said.stdout and said
                )
            finally:
                device.kill()
        assert done.returncode == 0, done.stdout
        assert states(done)["url"] == "good"

        text = doctor(*here, "--url", served.url, environment={**environment, "EDVIT_TOKEN": "wrong"})
        assert text.returncode == 0, "a token that is not known is a warning"
        assert "! url" in text.stdout
        assert "✓ gateway" in text.stdout
        assert all(line[0] in "✓!✗" for line in text.stdout.splitlines())
    gone = doctor(*here, "--url", served.url, "--json", environment=environment)
    assert gone.returncode == 1
    assert states(gone)["connect"] == states(gone)["url"] == "bad"
