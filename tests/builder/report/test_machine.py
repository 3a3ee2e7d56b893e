import pytest

from edvit.builder.report.machine import cpu, cpu_name

INTEL = "".join(f"processor\t: {core}\nmodel name\t: Intel(R) Xeon(R) CPU @ 2.20GHz\n\n" for core in (0, 1))
PI = "processor\t: 0\nBogoMIPS\t: 108.00\n\nHardware\t: BCM2835\nModel\t\t: Raspberry Pi 4 Model B Rev 1.4\n"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (INTEL, "Intel(R) Xeon(R) CPU @ 2.20GHz"),
        (PI, "Raspberry Pi 4 Model B Rev 1.4"),
        ("processor : 0\nBogoMIPS : 50.00\n", None),
        ("", None),
    ],
    ids=["x86", "a board", "ARM without a name", "nothing"],
)
def test_the_processors_name(text, name):
    assert cpu_name(text) == name


def test_this_machine_has_cores():
    assert cpu().partition(" · ")[2].split()[1] in ("core", "cores")
