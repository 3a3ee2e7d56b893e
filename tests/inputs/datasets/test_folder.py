from itertools import product

import numpy as np
import pytest
from PIL import Image

from edvit.errors import DataError
from edvit.inputs.audio import Spectrogram
from edvit.inputs.datasets import FileSounds, read_split
from edvit.inputs.preprocess import Preprocessing
from sounds import encoded, tone


@pytest.fixture
def fill(tmp_path):
    """Writes class folders with images, each another: fill("train", cat=2, dog=1)."""
    colours = product(range(256), repeat=3)

    def write(split, **classes):
        for name, count in classes.items():
            folder = tmp_path / split / name
            folder.mkdir(parents=True, exist_ok=True)
            for i in range(count):
                Image.new("RGB", (5, 4), next(colours)).save(folder / f"{i}.png")
        return f"imagefolder:{tmp_path}"

    return write


def test_labels_follow_the_sorted_class_folders(fill):
    spec = fill("train", dog=1, cat=2)
    fill("test", dog=2, cat=1)
    train, test = read_split(spec, "train"), read_split(spec, "test")
    assert train.classes == test.classes == ("cat", "dog")
    assert train.labels.tolist() == [0, 0, 1]
    assert test.labels.tolist() == [0, 1, 1]
    assert train.labels.dtype == np.int64
    assert train.image(1).getpixel((0, 0)) == (0, 0, 2), "the third that was written"


def test_a_file_may_give_the_order_of_the_classes(fill, tmp_path):
    fill("train", **{"dog": 1, "cat": 2, "on-off": 1})
    spec = fill("test", dog=2, cat=1)
    (tmp_path / "class_order.txt").write_text("dog\non/off\ncat\n")
    train, test = read_split(spec, "train"), read_split(spec, "test")
    assert train.classes == test.classes == ("dog", "on/off", "cat")
    for images in (train, test):
        names = [images.classes[label].replace("/", "-") for label in images.labels]
        assert names == [path.parent.name for path in images.paths]
    assert train.labels.tolist() == [2, 2, 0, 1]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"dog\n", r"train: has classes that .*class_order\.txt lacks: cat"),
        (b"dog\ncat\ndog\n", r"class_order\.txt: names a class twice"),
        (b"\xff", r"class_order\.txt: cannot be read as UTF-8 text"),
    ],
)
def test_a_wrong_order_of_the_classes_is_told(fill, tmp_path, content, told):
    spec = fill("train", dog=1, cat=2)
    (tmp_path / "class_order.txt").write_bytes(content)
    with pytest.raises(DataError, match=told):
        read_split(spec, "train")


def test_links_to_folders_are_followed_and_loops_end(fill, tmp_path):
    spec = fill("train", cat=1, dog=1)
    elsewhere = tmp_path / "elsewhere" / "deep"
    elsewhere.mkdir(parents=True)
    Image.new("RGB", (5, 4)).save(elsewhere / "more.png")
    cat = tmp_path / "train" / "cat"
    (cat / "linked").symlink_to(tmp_path / "elsewhere")
    (cat / "again").symlink_to(tmp_path / "elsewhere")
    (cat / "round").symlink_to(cat)
    (elsewhere / "up").symlink_to(tmp_path / "train")
    train = read_split(spec, "train")
    assert train.classes == ("cat", "dog")
    assert sorted(path.name for path in train.paths if "cat" in path.parts) == ["0.png", "more.png"]
    assert train.labels.tolist() == [0, 0, 1]


def test_a_file_linked_to_is_read_and_a_link_to_nothing_is_none(fill, tmp_path):
    spec = fill("train", cat=1)
    Image.new("RGB", (5, 4)).save(tmp_path / "one.png")
    (tmp_path / "train" / "cat" / "linked.png").symlink_to(tmp_path / "one.png")
    (tmp_path / "train" / "cat" / "lost.png").symlink_to(tmp_path / "none.png")
    assert len(read_split(spec, "train")) == 2


def test_a_folder_given_without_its_kind_is_named(fill, tmp_path):
    fill("train", cat=1)
    with pytest.raises(DataError, match=f"unknown data spec .*; of a folder: imagefolder:{tmp_path}, or audiofolder:"):
        read_split(str(tmp_path), "train")
    with pytest.raises(DataError, match="unknown data spec 'parts'; known"):
        read_split("parts", "train")


def test_val_stands_in_only_where_there_is_no_test(fill):
    spec = fill("train", cat=1)
    fill("val", cat=3)
    assert len(read_split(spec, "test")) == 3
    fill("test", cat=2)
    assert len(read_split(spec, "test")) == 2


def test_class_folders_alone_are_cut_by_a_hash_of_names(fill, tmp_path):
    fill(".", cat=5, dog=10)
    train, test = (read_split(f"imagefolder:{tmp_path}", split) for split in ("train", "test"))
    assert (np.bincount(train.labels).tolist(), np.bincount(test.labels).tolist()) == ([4, 8], [1, 2])
    assert not set(train.paths) & set(test.paths)
    assert test.notes == (
        "no train/ and no test/: 3 of 15 files are for testing, a fifth of each class, by the hash of each file's name",
    )
    # Neither on the day, nor on the place: these are what they were when this was written.
    assert [path.relative_to(tmp_path).as_posix() for path in test.paths] == ["cat/0.png", "dog/5.png", "dog/7.png"]


def test_a_test_split_may_lack_a_class_and_keeps_the_labels(fill):
    spec = fill("train", ant=1, bee=1, cat=1)
    fill("test", cat=1)
    test = read_split(spec, "test")
    assert test.classes == ("ant", "bee", "cat")
    assert test.labels.tolist() == [2]


def test_other_files_and_hidden_folders_are_passed_over(fill, tmp_path):
    spec = fill("train", cat=1)
    (tmp_path / "train" / "cat" / "notes.txt").write_text("x")
    (tmp_path / "train" / "README").write_text("x")
    (tmp_path / "train" / ".cache").mkdir()
    assert len(read_split(spec, "train")) == 1


def test_images_may_lie_deeper_and_in_capitals(fill, tmp_path):
    spec = fill("train", cat=0)
    deeper = tmp_path / "train" / "cat" / "2024"
    deeper.mkdir()
    Image.new("L", (2, 2)).save(deeper / "X.JPG", format="JPEG")
    assert read_split(spec, "train").paths == (deeper / "X.JPG",)


def test_a_class_folder_with_no_images_is_named(fill, tmp_path):
    spec = fill("train", cat=1, dog=0)
    with pytest.raises(DataError, match=r"train/dog: a class folder with no images"):
        read_split(spec, "train")


def test_a_test_class_that_train_lacks_is_named(fill):
    spec = fill("train", cat=1)
    fill("test", cat=1, dog=1)
    with pytest.raises(DataError, match=r"has classes that .*train lacks: dog"):
        read_split(spec, "test")


def test_a_missing_split_is_named(fill):
    with pytest.raises(DataError, match=r"has no test/ or val/"):
        read_split(fill("train", cat=1), "test")


def test_a_folder_without_classes_is_refused(tmp_path):
    with pytest.raises(DataError, match="has no class folders"):
        read_split(f"imagefolder:{tmp_path}", "test")


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        read_split(f"imagefolder:{tmp_path / 'nowhere'}", "train")


@pytest.mark.parametrize("spec", ["imagefolder", "imagefolder:", "imagenet", "digits:x", ""])
def test_an_unknown_spec_is_refused(spec):
    with pytest.raises(DataError):
        read_split(spec, "train")


def write_sounds(root, **classes):
    for name, hertz in classes.items():
        folder = root / "train" / name
        folder.mkdir(parents=True)
        for i, kind in enumerate(("WAV", "FLAC")):
            (folder / f"{i}.{kind.lower()}").write_bytes(encoded(tone(hertz, 0.5), kind=kind))
    return f"audiofolder:{root}"


def test_an_audiofolder_holds_sounds(tmp_path):
    sounds = read_split(write_sounds(tmp_path, low=200, high=2000), "train")
    assert isinstance(sounds, FileSounds)
    assert sounds.classes == ("high", "low")
    assert sounds.labels.tolist() == [0, 0, 1, 1]
    assert sounds.typical() == (0.5, 16_000)
    how = Preprocessing(image_size=16, channels=1, mean=(0.5,), std=(0.5,), spectrogram=Spectrogram(seconds=0.5))
    wav, flac, other = (sounds.prepared(i, how).astype(int) for i in range(3))
    # The same sound, but libsndfile rounds the two to 16 bits differently.
    assert np.abs(wav - flac).max() <= 2
    assert np.abs(wav - other).max() > 50


def test_a_damaged_sound_is_named(tmp_path):
    sounds = read_split(write_sounds(tmp_path, low=200), "train")
    how = Preprocessing(image_size=16, channels=1, mean=(0.5,), std=(0.5,), spectrogram=Spectrogram())
    sounds.paths[0].write_bytes(b"nothing of the kind")
    with pytest.raises(DataError, match=r"low/0.wav: not a sound file.*replace or remove the file"):
        sounds.prepared(0, how)
    assert sounds.typical() == (0.5, 16_000), "told by the others"
    sounds.paths[1].write_bytes(b"")
    with pytest.raises(DataError, match=r"low/0.wav: not a sound file.*replace or remove the file"):
        sounds.typical()


def test_an_audiofolder_without_sounds_says_so(fill, tmp_path):
    fill("train", cat=1)
    with pytest.raises(DataError, match="a class folder with no sound files"):
        read_split(f"audiofolder:{tmp_path}", "train")
    with pytest.raises(DataError, match="audiofolder needs a folder: audiofolder:DIR"):
        read_split("audiofolder", "train")
