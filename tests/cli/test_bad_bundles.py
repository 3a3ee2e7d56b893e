"""Every command that reads a bundle or a fleet refuses a bad one in one line, with exit code 2."""

import json
import shutil

import pytest

from tiny_bundle import write_tiny_bundle


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return write_tiny_bundle(tmp_path_factory.mktemp("original") / "bundle")


@pytest.fixture
def folder(original, tmp_path):
    return shutil.copytree(original.path, tmp_path / "bundle")


def change_byte(folder):
    path = folder / "submodel-1.onnx"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def remove_file(folder):
    (folder / "fusion.onnx").unlink()


def point_outside(folder):
    path = folder / "manifest.json"
    values = json.loads(path.read_text())
    values["fusion"]["model"]["file"] = "../fusion.onnx"
    path.write_text(json.dumps(values))


def change_version(folder):
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"version": 1', '"version": 7'))


DAMAGE = {
    change_byte: "altered or damaged",
    remove_file: "fusion.onnx: missing",
    point_outside: "unsafe path",
    change_version: "version 7 is unknown",
}
COMMANDS = {
    "serve": ["--local", "--port", "0"],
    "inspect": [],
    "evaluate": ["--data", "digits"],
}


def assert_refused(done, message, exit_code=2):
    code, out, err = done
    assert (code, out) == (exit_code, "")
    assert err.startswith("edvit: ")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_a_bad_bundle(edvit, folder, damage, command):
    damage(folder)
    assert_refused(edvit(command, folder, *COMMANDS[command]), DAMAGE[damage])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: local\ndevices: [{name: dev-1}, {name: dev-1}]", "device name used twice: dev-1"),
        ("name: local\ndevices: [{name: dev-1, memory_mb: -5}]", "memory_mb: Input should be greater than 0"),
        ("name: local\ndevices: [{name: dev-1, colour: red}]", "colour: unknown key"),
        ("name: local\ndevices: [{name: dev-1}]", "lacks dev-2"),
        ("name: shelf\ndevices: [{name: dev-1}, {name: dev-2}]", "was built for fleet local"),
    ],
)
def test_a_bad_fleet(edvit, original, tmp_path, text, message):
    path = tmp_path / "fleet.yaml"
    path.write_text(text)
    assert_refused(edvit("serve", original.path, "--local", "--port", "0", "--fleet", path), message)


def test_an_address_that_is_none(edvit, original):
    code, _, said = edvit("serve", original.path, "--local", "--insecure", "--host", "no.such.host.invalid")
    warning, error = said.splitlines()
    assert warning.startswith("INSECURE")
    assert "check --host" in error
    assert code == 2


def test_nothing_answers(edvit):
    assert_refused(edvit("evaluate", "http://127.0.0.1:9", "--data", "digits"), "nothing answers there", exit_code=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "imagenet"], "unknown data spec"),
        (["--data", "mnist"], "mnist needs --data-root"),
        (["--data", "digits", "--split", "val"], "Choose from"),
        (["--data", "digits"], "classes that the model does not know"),
    ],
)
def test_bad_data(edvit, original, arguments, message):
    assert_refused(edvit("evaluate", original.path, *arguments), message)
