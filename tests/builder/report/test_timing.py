from edvit.builder.report import timing
from edvit.builder.report.timing import interleaved_s, median_s


def calls(said):
    return {name: lambda name=name: said.append(name) for name in "ab"}


def test_a_round_makes_each_call_once_after_the_warm_up():
    said = []
    seconds = interleaved_s(calls(said), rounds=4, warm_up=1)
    assert "".join(said) == "ab" + 4 * "ab"
    assert {name: len(taken) for name, taken in seconds.items()} == {"a": 4, "b": 4}
    assert all((taken >= 0).all() for taken in seconds.values())


def test_slow_calls_have_fewer_rounds(monkeypatch):
    monkeypatch.setattr(timing, "LIMIT_S", 0.0)
    said = []
    assert len(interleaved_s(calls(said), rounds=50, warm_up=0)["a"]) == timing.FEWEST_ROUNDS


def test_the_warm_up_does_not_count():
    said = []
    assert median_s(lambda: said.append(1), runs=5, warm_up=2) >= 0
    assert len(said) == 7
