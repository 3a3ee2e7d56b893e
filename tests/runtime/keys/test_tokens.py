import json
import os
from datetime import datetime, timezone

import pytest

from edvit.errors import ConfigError
from edvit.runtime.keys.tokens import TokenList, add_token, remove_token, tokens

NOW = datetime.now(timezone.utc)


def test_a_token_is_found_by_itself_alone(tmp_path):
    one = add_token(tmp_path, "one", ["predict"], NOW)
    two = add_token(tmp_path, "two", ["watch", "predict"], NOW)
    found = TokenList(tmp_path)
    assert (found.find(one).name, found.find(two).name) == ("one", "two")
    assert found.find(two).scopes == ("predict", "watch")
    for wrong in ("", one[:-1], one + "x", one.upper(), "edvit_", "\udcff", "é" * 50):
        assert found.find(wrong) is None


def test_the_file_has_no_token_in_it_and_is_the_owners_alone(tmp_path):
    token = add_token(tmp_path, "one", ["operate"], NOW)
    path = tmp_path / "tokens.json"
    assert token.removeprefix("edvit_") not in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    assert len(token) >= 6 + 43  # 256 bits


def test_a_change_holds_from_the_next_request_on(tmp_path):
    found = TokenList(tmp_path)
    assert found.find("edvit_x") is None
    first = add_token(tmp_path, "one", ["predict"], NOW)
    assert found.find(first) is not None
    second = add_token(tmp_path, "one", ["predict"], NOW)
    assert (found.find(first), found.find(second).name) == (None, "one")
    remove_token(tmp_path, "one")
    assert found.find(second) is None
    (tmp_path / "tokens.json").unlink()
    assert found.find(second) is None


@pytest.mark.parametrize("scopes", [[], ["everything"], ["predict", "Watch"]])
def test_scopes_that_are_none_are_refused(tmp_path, scopes):
    with pytest.raises(ConfigError, match="among predict, watch, operate"):
        add_token(tmp_path, "one", scopes, NOW)
    assert tokens(tmp_path) == ()


def test_what_is_not_there_or_damaged_is_told_in_one_line(tmp_path):
    with pytest.raises(ConfigError, match="no such token"):
        remove_token(tmp_path, "one")
    with pytest.raises(ConfigError, match="edvit keys init"):
        add_token(tmp_path / "missing", "one", ["predict"], NOW)
    for damage in ("{", "3", json.dumps([{"name": "x"}])):
        (tmp_path / "tokens.json").write_text(damage)
        os.utime(tmp_path / "tokens.json")
        with pytest.raises(ConfigError, match="damaged"):
            TokenList(tmp_path).find("edvit_x")
