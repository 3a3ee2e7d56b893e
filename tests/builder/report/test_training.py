from edvit.builder.report.statistics import Share
from edvit.builder.report.training import Training, curve_panels


def test_a_note_without_a_curve_gives_the_accuracy_at_the_end():
    found = Training.of("base", "base model", {"validation": 138 / 142, "epochs": 60}, 142)
    assert found == Training("base", "base model", Share(138, 142))
    assert curve_panels([found]) == []


def test_a_noted_curve_is_taken_and_each_kind_of_loss_has_a_panel():
    trainings = [
        Training.of("base", "base model", {"validation": 0.5, "curve": {"loss": [2.0, 1.0], "validation": []}}, 10),
        Training.of("sub-model 0", "sub-models", {"validation": 0.5, "curve": {"loss": [3.0], "validation": []}}, 10),
        Training.of("fusion", "fusion", {"validation": 0.5, "curve": {"loss": [0.9], "validation": [0.4]}}, 10),
        Training.of("N = 1", "sub-models", {"validation": 0.5, "curve": {"loss": [4.0], "validation": []}}, 10),
    ]
    assert trainings[2] == Training("fusion", "fusion", Share(5, 10), (0.9,), (0.4,))
    assert curve_panels(trainings) == [
        ("base model: training loss", {"base": (2.0, 1.0)}),
        ("sub-models: training loss", {"sub-model 0": (3.0,), "N = 1": (4.0,)}),
        ("fusion: training loss", {"fusion": (0.9,)}),
        ("fusion: validation loss", {"fusion": (0.4,)}),
    ]
