import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from edvit.errors import FleetError
from edvit.fleet import PROFILES, Device, Fleet, load_fleet, local_fleet

SHELF = """
name: shelf
gateway: {uplink_mbps: 100}
devices:
  - {name: pi-1, profile: raspberry-pi-4b, memory_mb: 180, energy_j: 4.0, link: {mbps: 100, rtt_ms: 0.6}}
  - {name: pi-2, profile: raspberry-pi-4b, memory_mb: 50}
"""


@pytest.fixture
def load(tmp_path):
    def write_and_load(text):
        path = tmp_path / "fleet.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load_fleet(path)

    return write_and_load


def test_the_designs_example(load):
    fleet = load(SHELF)
    assert [device.name for device in fleet.devices] == ["pi-1", "pi-2"]
    assert fleet.gateway.uplink_mbps == 100
    first, second = fleet.devices
    assert (first.memory_bytes, first.energy_j, first.link.rtt_ms) == (180_000_000, 4.0, 0.6)
    assert second.energy_j is None
    assert second.gflops == PROFILES["raspberry-pi-4b"].gflops
    assert fleet.device("pi-2") is second
    with pytest.raises(KeyError):
        fleet.device("pi-3")


def test_what_is_given_beats_the_profile():
    device = Device.model_validate({"name": "a", "profile": "mini-pc", "gflops": 1.5})
    assert (device.gflops, device.watts) == (1.5, PROFILES["mini-pc"].watts)


@given(st.integers(1, 30))
def test_a_fleet_survives_yaml(size):
    fleet = local_fleet(size)
    assert len(fleet.devices) == size
    assert Fleet.model_validate(yaml.safe_load(yaml.safe_dump(fleet.model_dump(mode="json")))) == fleet


def device(**values):
    return yaml.safe_dump({"name": "f", "devices": [{"name": "a", **values}]})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: f\ndevices: [{name: a}, {name: b}, {name: a}]", "devices: device name used twice: a"),
        (device(memory_mb=-1), r"devices\.0\.memory_mb: Input should be greater than 0"),
        (device(memory_mb="lots"), r"devices\.0\.memory_mb"),
        (device(memory_mb=float("inf")), r"devices\.0\.memory_mb: Input should be a finite number"),
        (device(energy_j=float("inf")), r"devices\.0\.energy_j: Input should be a finite number"),
        (device(gflops=float("inf")), r"devices\.0\.gflops: Input should be a finite number"),
        (device(watts=float("nan")), r"devices\.0\.watts: Input should be a finite number"),
        (device(link={"mbps": float("inf")}), r"devices\.0\.link\.mbps: Input should be a finite number"),
        (device(link={"rtt_ms": float("inf")}), r"devices\.0\.link\.rtt_ms: Input should be a finite number"),
        ("name: f\ngateway: {uplink_mbps: .inf}\ndevices: [{name: a}]", r"gateway\.uplink_mbps: .* finite number"),
        (device(energy_j=0), r"devices\.0\.energy_j"),
        (device(memory=5), r"devices\.0\.memory: unknown key"),
        (device(link={"mbps": 0}), r"devices\.0\.link\.mbps"),
        (device(link={"speed": 1}), r"devices\.0\.link\.speed: unknown key"),
        (device(profile="abacus"), "unknown profile 'abacus'; known: .*raspberry-pi-5"),
        (device(profile=["x"]), "unknown profile"),
        ("name: f\ndevices: []", "devices:"),
        ("name: f", "devices: Field required"),
        ("devices: [{name: a}]", "name: Field required"),
        ("name: f\ncolour: red\ndevices: [{name: a}]", "colour: unknown key"),
        ("name: f\ndevices: [a]", r"devices\.0"),
        ("name: a/b\ndevices: [{name: a}]", "name: String should match"),
        ("name: f\ndevices: [{name: 'a/*'}]", r"devices\.0\.name"),
        (device(memory_mb=-2), r"devices\.0\.memory_mb: Input should be greater than 0$"),
        (device(memory_mb=-2, watts=0), r"devices\.0\.memory_mb: Input should be greater than 0 \(and 1 more\)$"),
        ("- just\n- a list", r"holds no keys but a list: give a name and devices, such as \{name: shelf, devices"),
        ("just text", "holds no keys but a str: give a name"),
        ("", "is empty: give a name and devices, such as"),
        ("name: [unclosed", r"not valid YAML at line \d"),
        (b"\xff\xfe\x00", "cannot be read|not valid YAML"),
        ("!!python/object/apply:os.getcwd []", "not valid YAML"),
        ("name: shelf\ndevices: " + "[" * 100_000, "lists and maps are nested over 10 deep at line 2"),
        ("name: " + "x" * 1_000_000, "has 1,000,006 characters, at most 1,000,000 are read"),
    ],
)
def test_a_bad_file_is_one_line_that_names_the_field(load, text, message):
    with pytest.raises(FleetError, match=message) as caught:
        load(text)
    assert "\n" not in str(caught.value)
    assert "fleet.yaml: " in str(caught.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(FleetError, match="no such file"):
        load_fleet(tmp_path / "none.yaml")
    with pytest.raises(FleetError, match="cannot be read"):
        load_fleet(tmp_path)


@given(st.text(max_size=80))
def test_any_name_is_accepted_whole_or_refused(name):
    """A name that is accepted holds nothing that means something in a Zenoh key or a path."""
    try:
        accepted = Device.model_validate({"name": name}).name
    except ValueError:
        return
    assert accepted == name
    assert not set(name) & set("/*$?# \n\\")
    assert name not in (".", "..")
