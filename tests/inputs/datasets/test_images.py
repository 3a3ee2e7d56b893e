import io
import os
import pickle
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from edvit.errors import DataError
from edvit.inputs.datasets import read_split
from edvit.inputs.datasets.images import ArrayImages, FileImages, shorten
from edvit.inputs.preprocess import Preprocessing, decode_image


def array_images(pixels, labels=None, classes=("a", "b", "c")):
    labels = np.zeros(len(pixels), dtype=np.int64) if labels is None else np.array(labels, dtype=np.int64)
    return ArrayImages(classes=classes, labels=labels, pixels=pixels, source="made")


@given(arrays(np.uint8, st.sampled_from([(2, 5, 7), (2, 5, 7, 3)])))
def test_encoding_in_memory_images_loses_nothing(pixels):
    images = array_images(pixels)
    decoded = Image.open(io.BytesIO(images.encoded(1)))
    assert np.array_equal(np.asarray(decoded), pixels[1])
    assert np.array_equal(np.asarray(images.image(1)), pixels[1])


@given(st.permutations(["a", "b", "c", "d"]))
def test_with_classes_keeps_every_image_its_name(order):
    images = array_images(np.zeros((6, 2, 2), dtype=np.uint8), labels=[0, 1, 2, 2, 1, 0])
    moved = images.with_classes(order)
    assert moved.classes == tuple(order)
    assert [moved.classes[i] for i in moved.labels] == [images.classes[i] for i in images.labels]


def test_with_classes_refuses_a_class_the_model_lacks():
    images = array_images(np.zeros((1, 2, 2), dtype=np.uint8))
    with pytest.raises(DataError, match=r"does not know: c \(the model knows a, b\)"):
        images.with_classes(["a", "b"])


def test_files_are_read_lazily_and_byte_for_byte(tmp_path):
    path = tmp_path / "x.png"
    images = FileImages(classes=("a",), labels=np.zeros(1, dtype=np.int64), paths=(path,))
    Image.new("RGB", (4, 3), (1, 2, 3)).save(path)
    assert images.encoded(0) == path.read_bytes()
    assert images.image(0).getpixel((3, 2)) == (1, 2, 3)
    assert images.name(0) == str(path)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89PNG\r\n\x1a\n"], ids=["empty", "text", "stub"])
def test_an_unreadable_file_is_named(tmp_path, content):
    path = tmp_path / "bad.png"
    path.write_bytes(content)
    images = FileImages(classes=("a",), labels=np.zeros(1, dtype=np.int64), paths=(path,))
    with pytest.raises(DataError, match=r"bad\.png: .*replace or remove"):
        images.image(0)


def test_a_truncated_file_is_named(tmp_path):
    path = tmp_path / "cut.png"
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[:-500])
    images = FileImages(classes=("a",), labels=np.zeros(1, dtype=np.int64), paths=(path,))
    with pytest.raises(DataError, match=r"cut\.png: not a readable image"):
        images.image(0)


def test_a_missing_file_is_named(tmp_path):
    images = FileImages(classes=("a",), labels=np.zeros(1, dtype=np.int64), paths=(tmp_path / "gone.png",))
    with pytest.raises(DataError, match=r"gone\.png"):
        images.image(0)
    with pytest.raises(DataError, match=r"gone\.png"):
        images.encoded(0)


def test_they_can_be_sent_to_another_process(tmp_path):
    images = array_images(np.arange(8, dtype=np.uint8).reshape(2, 2, 2))
    again = pickle.loads(pickle.dumps(images))
    assert np.array_equal(again.pixels, images.pixels)


def test_the_content_of_a_file_is_its_bytes_whatever_its_size_time_and_place(tmp_path):
    path, copy = tmp_path / "a.png", tmp_path / "else" / "b.png"
    copy.parent.mkdir()
    path.write_bytes(b"one")
    copy.write_bytes(b"one")
    files = FileImages(classes=("x",), labels=np.zeros(2, np.int64), paths=(path, copy), root=tmp_path)
    before, state = files.content(0), path.stat()
    assert before == files.content(1)
    time.sleep(0.05)  # a file system counts changes in steps of some milliseconds
    path.write_bytes(b"two")
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert path.stat().st_mtime_ns == state.st_mtime_ns
    assert files.content(0) != before
    assert files.copies.tolist()[0] != files.copies.tolist()[1]


def test_empty_and_missing_files_are_no_copies(tmp_path):
    paths = tuple(tmp_path / name for name in ("a.png", "b.png", "none.png", "no.png"))
    for path in paths[:2]:
        path.touch()
    files = FileImages(classes=("x",), labels=np.zeros(4, np.int64), paths=paths, root=tmp_path)
    assert len(set(files.copies.tolist())) == 4


def test_shorten():
    assert shorten(["a", "b"]) == "a, b"
    assert shorten(list("abcdefgh")) == "a, b, c, d and 4 more"


def test_training_sees_the_pixels_that_serving_sees(tmp_path):
    how = Preprocessing(image_size=16, channels=3, mean=(0.0,) * 3, std=(1.0,) * 3)
    folder = tmp_path / "train" / "a"
    folder.mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 256, size=(300, 400, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "large.jpg")
    images = read_split(f"imagefolder:{tmp_path}", "train")
    np.testing.assert_array_equal(images.prepared(0, how), decode_image(images.encoded(0), how))


def test_a_file_that_cannot_be_decoded_is_named(tmp_path):
    how = Preprocessing(image_size=16, channels=3, mean=(0.0,) * 3, std=(1.0,) * 3)
    folder = tmp_path / "train" / "a"
    folder.mkdir(parents=True)
    (folder / "text.png").write_bytes(b"no image")
    images = read_split(f"imagefolder:{tmp_path}", "train")
    with pytest.raises(DataError, match=r"text\.png: not an image file"):
        images.prepared(0, how)
