"""The stored inputs and some that hypothesis makes, through every parser."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuzz.law import check
from fuzz.parsers import PARSERS, seeds

CORPUS = Path(__file__).with_name("corpus")
STORED = sorted(path for path in CORPUS.glob("*/*") if path.is_file())


@pytest.mark.parametrize("path", STORED, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_a_stored_input_gives_a_value_or_the_senders_error(path):
    check(PARSERS[path.parent.name], path.read_bytes())


@pytest.mark.parametrize("name", PARSERS)
def test_a_valid_sample_with_changed_bytes_gives_a_value_or_the_senders_error(name):
    @settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def run(data):
        sample = bytearray(data.draw(st.sampled_from(seeds(name))))
        for _ in range(data.draw(st.integers(0, 4))):
            sample[data.draw(st.integers(0, len(sample) - 1))] = data.draw(st.integers(0, 255))
        cut = data.draw(st.integers(0, len(sample)))
        check(PARSERS[name], bytes(sample[:cut] if data.draw(st.booleans()) else sample))

    run()
