import pytest

from edvit.errors import DataError
from edvit.inputs.datasets import read_split
from edvit.inputs.datasets.gtzan import CLIPS, FAULTY, FOLDERS, GENRES


def write(folder, suffix=".wav"):
    """Every clip of the official layout, as an empty file: the reader decodes none."""
    for genre in GENRES:
        (folder / genre).mkdir(parents=True)
        for number in range(CLIPS):
            (folder / genre / f"{genre}.{number:05}{suffix}").touch()


@pytest.mark.parametrize(("name", "suffix"), [(FOLDERS[0], ".wav"), (FOLDERS[2], ".wav"), (FOLDERS[4], ".au")])
def test_a_fifth_of_each_genre_is_for_testing_and_the_damaged_clip_for_nothing(tmp_path, name, suffix):
    write(tmp_path / name, suffix)
    train, test = (read_split("gtzan", split, tmp_path) for split in ("train", "test"))
    assert train.classes == GENRES
    for genre in GENRES:
        counts = [sum(path.parent.name == genre for path in split.paths) for split in (train, test)]
        assert counts == ([79, 20] if genre == "jazz" else [80, 20])
    assert not {path.stem for split in (train, test) for path in split.paths} & FAULTY
    assert not set(train.paths) & set(test.paths)
    assert train.notes == ("skipped jazz.00054: known to be damaged",)


def test_the_split_does_not_depend_on_the_form(tmp_path):
    write(tmp_path / "a" / "genres")
    write(tmp_path / "b" / "gtzan" / "genres", ".au")
    stems = [[path.stem for path in read_split("gtzan", "test", tmp_path / root).paths] for root in ("a", "b")]
    assert stems[0] == stems[1]
    # Nor on the year: these are what it was when it was written.
    assert stems[0][:3] == ["blues.00018", "blues.00024", "blues.00027"]


def test_missing_clips_are_named(tmp_path):
    with pytest.raises(DataError, match="needs --data-root"):
        read_split("gtzan", "train")
    write(tmp_path / "genres")
    (tmp_path / "genres" / "pop" / "pop.00007.wav").unlink()
    with pytest.raises(DataError, match=r"missing pop.00007 \(.wav or .au\)"):
        read_split("gtzan", "train", tmp_path)
    # That the damaged one is absent is no fault, and nothing to tell.
    (tmp_path / "genres" / "pop" / "pop.00007.wav").touch()
    (tmp_path / "genres" / "jazz" / "jazz.00054.wav").unlink()
    assert read_split("gtzan", "train", tmp_path).notes == ()
