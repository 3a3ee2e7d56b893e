import numpy as np
import pytest

from edvit.errors import DataError
from edvit.inputs.datasets import FileSounds, read_split
from edvit.inputs.datasets.speech_commands import FOLDERS
from sounds import encoded, tone

SPEAKERS = ("0a", "1b", "2c", "3d")
WORDS = ("down", "no", "yes")


@pytest.fixture(params=FOLDERS)
def root(tmp_path, request):
    """The official layout: speaker 2c is for validation, 3d for testing."""
    folder = tmp_path / request.param
    for word in (*WORDS, "_background_noise_"):
        (folder / word).mkdir(parents=True)
    (folder / "_background_noise_" / "tap.wav").write_bytes(encoded(tone(50)))
    for i, word in enumerate(WORDS):
        for speaker in SPEAKERS:
            (folder / word / f"{speaker}_nohash_0.wav").write_bytes(encoded(tone(200 + 100 * i, 0.1)))
    for name, speaker in (("validation_list.txt", "2c"), ("testing_list.txt", "3d")):
        (folder / name).write_text("".join(f"{word}/{speaker}_nohash_0.wav\n" for word in WORDS))
    return tmp_path


def speakers(sounds, index=None):
    chosen = range(len(sounds)) if index is None else index
    return {sounds.paths[i].name[:2] for i in chosen}


def test_the_lists_split_it(root):
    train, test = (read_split("speech-commands", split, root) for split in ("train", "test"))
    assert isinstance(train, FileSounds)
    assert train.classes == test.classes == WORDS
    assert speakers(train) == {"0a", "1b", "2c"}
    assert speakers(train, train.validation) == {"2c"}
    assert np.bincount(train.labels[train.validation]).tolist() == [1, 1, 1]
    assert speakers(test) == {"3d"}
    assert test.validation is None
    for sounds in (train, test):
        assert [sounds.classes[label] for label in sounds.labels] == [path.parent.name for path in sounds.paths]


def test_what_is_missing_is_named(tmp_path, root):
    with pytest.raises(DataError, match="needs --data-root"):
        read_split("speech-commands", "train")
    with pytest.raises(DataError, match=r"missing testing_list.txt and validation_list.txt"):
        read_split("speech-commands", "train", tmp_path / "elsewhere")
    clip = next(root.rglob("yes/3d_nohash_0.wav"))
    clip.unlink()
    with pytest.raises(DataError, match=r"missing yes/3d_nohash_0.wav"):
        read_split("speech-commands", "train", root)
    next(root.rglob("testing_list.txt")).unlink()
    with pytest.raises(DataError, match=r"testing_list.txt: cannot be read"):
        read_split("speech-commands", "test", root)
