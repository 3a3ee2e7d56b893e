import json
import shutil

import pytest

from edvit.cli import deploy as command
from edvit.errors import ConfigError, DeployError, MemoryLimitError, RateLimitError, UnavailableError
from edvit.runtime.http.answers import DeployAnswer, ErrorDetail
from tiny_bundle import write_tiny_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_tiny_bundle(tmp_path_factory.mktemp("deploy") / "bundle")


def test_nothing_answers_there(edvit, bundle):
    code, out, err = edvit("deploy", "http://127.0.0.1:9", bundle.path)
    assert (code, out) == (1, "")
    assert err.startswith("edvit: http://127.0.0.1:9: nothing answers there")
    assert err.count("\n") == 1


def test_a_damaged_bundle_is_not_sent(edvit, bundle, tmp_path):
    shutil.copytree(bundle.path, tmp_path / "damaged")
    (tmp_path / "damaged" / "fusion.onnx").write_bytes(b"x")
    code, out, err = edvit("deploy", "http://127.0.0.1:9", tmp_path / "damaged")
    assert (code, out) == (2, "")
    assert "altered or damaged" in err


def test_a_folder_that_is_no_bundle(edvit, tmp_path):
    assert edvit("deploy", "http://127.0.0.1:9", tmp_path)[0] == 2


class Gateway:
    """Answers with what it is given, one after the other; the last one stays."""

    def __init__(self, *answers):
        self.answers = list(answers)

    def deploy_state(self):
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


def answer(state, *steps, identity="a", serving="0" * 64, error=None):
    return DeployAnswer(serving=serving, state=state, id=identity, steps=steps, error=error)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    for name in ("POLL_S", "RATE_PAUSE_S"):
        monkeypatch.setattr(command, name, 0.001)


def test_each_step_is_printed_once(bundle, capsys):
    gateway = Gateway(
        answer("under-way", "verified"),
        RateLimitError("too often"),
        UnavailableError("the connection broke"),
        answer("under-way", "verified", "warm: 1 of 2 devices", "warm: 2 of 2 devices"),
        answer("done", "verified", "warm: 1 of 2 devices", "warm: 2 of 2 devices", "switched"),
    )
    command.follow(gateway, answer("under-way"), bundle)
    said = capsys.readouterr().out.splitlines()
    assert said == ["verified", "warm: 1 of 2 devices", "warm: 2 of 2 devices", "switched"]


def test_why_it_failed(bundle):
    failed = answer("failed", "verified", error=ErrorDetail(code="memory-limit", message="device dev-1: no room"))
    with pytest.raises(MemoryLimitError, match=r"^device dev-1: no room; the old bundle stays$"):
        command.follow(Gateway(failed), answer("under-way"), bundle)


@pytest.mark.parametrize("is_new", [True, False])
def test_a_gateway_that_was_started_again_in_the_midst(bundle, capsys, is_new):
    again = answer("none", identity=None, serving=bundle.digest if is_new else "0" * 64)
    if is_new:
        command.follow(Gateway(again), answer("under-way"), bundle)
        assert "with the new bundle" in capsys.readouterr().out
    else:
        with pytest.raises(DeployError, match="with the old bundle: deploy again"):
            command.follow(Gateway(again), answer("under-way"), bundle)


def test_a_gateway_that_is_gone(bundle, monkeypatch):
    monkeypatch.setattr(command, "LOST_S", 0.01)
    with pytest.raises(UnavailableError, match="nothing answers"):
        command.follow(Gateway(UnavailableError("nothing answers")), answer("under-way"), bundle)


def test_a_token_over_plain_http(edvit, bundle, monkeypatch):
    monkeypatch.setenv("EDVIT_TOKEN", "edvit_x")
    code, _, err = edvit("deploy", "http://192.0.2.1:8080", bundle.path)
    assert code == ConfigError.exit_code
    assert "unencrypted" in err
    assert json.dumps("edvit_x") not in err
