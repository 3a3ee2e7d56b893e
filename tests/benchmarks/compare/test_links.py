import math

import pytest
from benchmarks.compare.links import LinkSpec, means, needs_netem, parse_link, run, shape
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.compare import links
from edvit.errors import ConfigError, UnavailableError


@pytest.mark.parametrize(
    ("text", "link"),
    [
        ("100mbit", LinkSpec(100)),
        ("20mbit", LinkSpec(20)),
        ("100mbit,5ms", LinkSpec(100, 5)),
        ("100mbit,5ms,1%", LinkSpec(100, 5, 0.01)),
        (" 1Gbit , 0.5ms , 0% ", LinkSpec(1000, 0.5)),
        ("250kbit", LinkSpec(0.25)),
    ],
)
def test_a_link_is_read_from_text(text, link):
    assert parse_link(text) == link


@given(
    st.integers(1, 100_000).map(lambda value: value / 100),
    st.integers(0, 10_000).map(lambda value: value / 100),
    st.integers(0, 99).map(lambda value: value / 100),
)
def test_a_link_is_written_as_it_is_read(mbps, delay_ms, loss):
    link = LinkSpec(mbps, delay_ms, loss)
    read = parse_link(str(link))
    assert (read.mbps, read.delay_ms) == (mbps, delay_ms)
    assert math.isclose(read.loss, loss)


@pytest.mark.parametrize(
    "text", ["", "fast", "100", "100mbps", "-1mbit", "100mbit,", "100mbit,5", "100mbit,1%", "1mbit,1ms,1%,1", "nanmbit"]
)
def test_what_is_no_link_is_told_in_one_line(text):
    with pytest.raises(ConfigError, match="is no link: write RATE,DELAY,LOSS") as caught:
        parse_link(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((0,), "above 0 Mbit/s, not 0"),
        ((math.inf,), "above 0 Mbit/s, not inf"),
        ((1, -1), "at least 0 ms, not -1"),
        ((1, math.nan), "at least 0 ms, not nan"),
        ((1, 0, 1), "below 100 %, not 100 %"),
    ],
)
def test_a_link_that_cannot_be_is_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        LinkSpec(*values)


def test_seconds_by_formula():
    assert LinkSpec(8).sending_s(1_000_000) == 1.0
    assert LinkSpec(8, 5).waiting_s(1_000_000) == 0.005
    lossy = LinkSpec(8, 5, 0.5)
    assert lossy.sending_s(1_000_000) == 2.0  # every byte twice
    assert lossy.waiting_s(2 * links.PACKET_BYTES) == pytest.approx(0.005 + 2 * 0.010)  # two packets, once each


def test_a_rate_alone_needs_no_netem():
    assert not needs_netem(LinkSpec(100))
    assert shape(LinkSpec(100))[:3] == ["tbf", "rate", "100000000bit"]
    assert needs_netem(LinkSpec(100, 5))
    assert needs_netem(LinkSpec(100, 0, 0.01))
    words = ["netem", "limit", "10000", "delay", "5000us", "loss", "1%", "rate", "100000000bit"]
    assert shape(LinkSpec(100, 5, 0.01)) == words


@pytest.fixture
def fresh():
    """What was found out here is forgotten before and after."""
    links._tried.cache_clear()
    yield
    links._tried.cache_clear()


def test_without_the_commands_links_are_modelled(fresh, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    found = means(LinkSpec(100))
    assert found.kind == "modelled"
    assert found.reason == "there is no ip command here (Linux, iproute2)"


def test_without_privileges_links_are_modelled(fresh, monkeypatch, tmp_path):
    for name in ("ip", "tc"):
        command = tmp_path / name
        command.write_text("#!/bin/sh\necho 'mount failed: Operation not permitted' >&2\nexit 1\n")
        command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    found = means(LinkSpec(100))
    assert found.kind == "modelled"
    assert found.reason == ("no network namespaces here: mount failed: Operation not permitted")


def test_a_command_that_cannot_be_started_is_told():
    with pytest.raises(UnavailableError, match="no-such-command cannot be started"):
        run("no-such-command")
