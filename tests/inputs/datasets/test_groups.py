import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edvit.errors import ConfigError, DataError
from edvit.inputs.datasets import read_split
from edvit.inputs.datasets.groups import groups_of
from edvit.inputs.datasets.splits import fixed_split, grouped_split, why_none

NAMES = ["yes/ann_1.wav", "yes/ann_2.wav", "no/bob_1.wav"]


def test_a_pattern_tells_groups():
    assert groups_of(NAMES, r"/([a-z]+)_") == ("ann", "ann", "bob")
    assert groups_of(NAMES, "^([^/]+)/") == ("yes", "yes", "no")


@pytest.mark.parametrize(
    ("pattern", "told"),
    [
        ("(", "is no regular expression"),
        ("ann", "has 0 groups; put one pair of parentheses"),
        ("(a)(b)", "has 2 groups"),
    ],
)
def test_a_wrong_pattern_is_told(pattern, told):
    with pytest.raises(ConfigError, match=told):
        groups_of(NAMES, pattern)


def test_files_without_a_group_are_counted_and_one_is_named():
    with pytest.raises(DataError, match=r"tells no group of 1 file of 3, such as no/bob_1.wav"):
        groups_of(NAMES, "(ann)")


@pytest.mark.parametrize("row", ["yes/ann_2.wav,", "ann_2.wav,  ", 'ann_2.wav,""', "ann_2.wav,\nother.wav,"])
def test_an_empty_group_is_none(tmp_path, row):
    table = tmp_path / "speakers.csv"
    table.write_text(f"yes/ann_1.wav,Ann\n{row}\nno/bob_1.wav,Bob\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"tells no group of 1 file of 3, such as yes/ann_2.wav"):
        groups_of(NAMES, str(table))
    with pytest.raises(DataError, match=r"tells no group of 3 files of 3, such as yes/ann_1.wav"):
        groups_of(NAMES, r"(\d*)")


def test_a_table_tells_groups_by_path_or_by_name(tmp_path):
    table = tmp_path / "speakers.CSV"
    table.write_text('yes/ann_1.wav,"Ann, first"\r\nann_2.wav,Bea\r\n\r\nno/bob_1.wav, Bob\r\n', encoding="utf-8-sig")
    assert groups_of(NAMES, str(table)) == ("Ann, first", "Bea", "Bob")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"a,b,c\n", "row 1 has 3 columns; two are needed: name,group"),
        (b"a,b\nc\n", "row 2 has 1 columns"),
        (b"a,b\na,c\n", "gives 'a' two groups"),
        (b"\xff,b\n", "cannot be read as CSV"),
    ],
)
def test_a_wrong_table_is_told(tmp_path, content, told):
    table = tmp_path / "t.csv"
    table.write_bytes(content)
    with pytest.raises(ConfigError, match=told):
        groups_of(NAMES, str(table))


def test_a_missing_table_is_told(tmp_path):
    with pytest.raises(ConfigError, match=r"--split-by \S+none.csv: no such file$"):
        groups_of(NAMES, str(tmp_path / "none.csv"))


grouped = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 3)), min_size=1, max_size=80)


@given(grouped, st.sampled_from([0.1, 0.2, 0.4]), st.randoms())
def test_groups_stay_together_and_no_class_is_taken_whole(pairs, share, rng):
    groups = [f"speaker {group}" for group, _ in pairs]
    labels = np.array([label for _, label in pairs], dtype=np.int64)
    held = grouped_split(groups, labels, np.arange(len(labels)), share)
    for group in set(groups):
        assert len({bool(held[i]) for i, other in enumerate(groups) if other == group}) == 1
    for label in np.unique(labels):
        assert not held[labels == label].all()
    order = list(range(len(pairs)))
    rng.shuffle(order)
    again = grouped_split([groups[i] for i in order], labels[order], np.arange(len(labels)), share)
    assert np.array_equal(again, held[order]), "the order of the files changes nothing"


def test_the_share_is_met_where_groups_allow_it():
    labels = np.repeat(np.arange(4), 500)
    groups = [f"s{i % 100}" for i in range(2000)]
    held = grouped_split(groups, labels, np.arange(len(labels)), 0.1)
    assert np.abs(np.bincount(labels[held]) - 50).max() <= 5


def test_two_groups_of_a_class_are_enough_and_one_is_kept_for_training():
    labels = np.array([0, 0, 0, 1, 1, 1], dtype=np.int64)
    held = grouped_split(["a", "a", "b", "c", "c", "c"], labels, np.arange(6), 0.1)
    assert held.tolist() == [False, False, True, False, False, False]


def test_groups_that_share_a_file_are_one_group():
    groups, labels = [f"s{i // 2}" for i in range(20)], np.repeat(np.arange(2), 10)
    apart = grouped_split(groups, labels, np.arange(20), 0.2)
    held = int(np.flatnonzero(apart)[0])
    copies = np.arange(20)
    copies[9] = copies[held] = 0
    joined = grouped_split(groups, labels, copies, 0.2)
    for image in np.unique(copies):
        assert len(set(joined[copies == image])) == 1
    for group in set(groups):
        assert len({bool(joined[i]) for i in range(20) if groups[i] == group}) == 1


def plain(root, files):
    """Class folders with a picture for each file."""
    for number, name in enumerate(files):
        (root / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (2, 2), (number, 0, 0)).save(root / name)
    return f"imagefolder:{root}"


@pytest.mark.parametrize("pattern", ["^([^/]+)/", "(.)ng$"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_one_group_in_all_or_in_each_class_cannot_be_cut(tmp_path, pattern, split):
    data = plain(tmp_path, [f"{name}/{i}.png" for name in ("no", "yes") for i in range(6)])
    with pytest.raises(DataError) as caught:
        read_split(data, split, split_by=pattern)
    assert str(caught.value) == (
        f"--split-by {pattern}: no class has files of two groups, so none can be left for testing; give more groups, "
        "or leave it out"
    )


def test_groups_of_which_each_has_a_class_whole_cannot_be_cut(tmp_path):
    data = plain(tmp_path, ["a/1.png", "b/1.png", "b/2.png", "c/2.png"])
    with pytest.raises(DataError, match=r"--split-by \S+: every group has all files of a class"):
        read_split(data, "test", split_by=r"(\d)\.png")


@given(grouped)
def test_where_nothing_is_held_out_the_reason_is_told(pairs):
    groups = [f"speaker {group}" for group, _ in pairs]
    labels = np.array([label for _, label in pairs], dtype=np.int64)
    if grouped_split(groups, labels, np.arange(len(labels)), 0.2).any():
        return
    of_class = [{groups[i] for i in np.flatnonzero(labels == label)} for label in np.unique(labels)]
    whole = {next(iter(own)) for own in of_class if len(own) == 1}
    assert (why_none(groups, labels) == "no class has files of two groups") == all(len(own) == 1 for own in of_class)
    assert whole == set(groups), "every group has all files of a class"


def test_without_groups_a_split_is_what_it_was():
    names, labels = [f"{i}.png" for i in range(20)], np.repeat(np.arange(2), 10)
    test = fixed_split(names, labels, np.arange(20), "test")
    assert np.bincount(labels[test]).tolist() == [2, 2]
    assert sorted([*test, *fixed_split(names, labels, np.arange(20), "train")]) == list(range(20))


def test_a_folder_without_splits_is_cut_by_group(tmp_path):
    for name in ("yes", "no"):
        (tmp_path / name).mkdir()
        for speaker in range(10):
            for clip in range(3):
                Image.new("RGB", (2, 2), (speaker, clip, len(name))).save(tmp_path / name / f"s{speaker}_{clip}.png")
    read = [read_split(f"imagefolder:{tmp_path}", split, split_by=r"/(s\d)_") for split in ("train", "test")]
    train, test = ({path.name[:2] for path in images.paths} for images in read)
    assert not train & test
    assert len(test) == 2
    assert set(read[0].groups) == train
    (note,) = read[1].notes
    assert note.endswith("12 of 60 files are for testing, about a fifth of each class, in whole groups of --split-by")
