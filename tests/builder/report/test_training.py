from edvit.builder.report.statistics import Share
from edvit.builder.report.training import Training


def test_a_note_without_a_course_gives_the_accuracy_at_the_end():
    assert Training.of("base", {"validation": 138 / 142, "epochs": 60}, 142) == Training("base", Share(138, 142))


def test_a_noted_course_is_taken():
    note = {"validation": 0.5, "curve": {"loss": [2.0, 1.0], "validation": [0.25, 0.5]}}
    assert Training.of("base", note, 4) == Training("base", Share(2, 4), (2.0, 1.0), (0.25, 0.5))
