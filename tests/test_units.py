import math

import pytest

from edvit.units import counted, si, spread


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0, "s", "0 s"),
        (0.0611, "s", "61.1 ms"),
        (2.31, "s", "2.31 s"),
        (0.00085, "s", "850 µs"),
        (0.9999, "s", "1.00 s"),
        (10_600_000, "B", "10.6 MB"),
        (999, "B", "999 B"),
        (2_502_000, "", "2.50 M"),
        (999_960, "", "1.00 M"),
        (0.31, "J", "310 mJ"),
        (4.0, "J", "4 J"),
        (-0.0611, "s", "-61.1 ms"),
        (math.inf, "J", "inf J"),
        (1e-12, "s", "0.00100 ns"),
    ],
)
def test_si(value, unit, text):
    assert si(value, unit) == text


def test_a_spread_names_the_range_where_there_is_one():
    assert spread([80, 90], "%") == "85.0% (80.0 – 90.0)"
    assert spread([0.251, 0.252], " M", 2) == "0.25 M"


def test_one_thing_is_no_plural():
    assert [counted(count, "class", "es") for count in (0, 1, 2)] == ["0 classes", "1 class", "2 classes"]
    assert counted(1200, "image") == "1,200 images"
