import io
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edvit.errors import ImageError, TooLargeError, UnsupportedMediaError
from edvit.inputs.audio import Spectrogram
from edvit.inputs.preprocess import Preprocessing
from edvit.runtime.http.body import FILE, NPY, read_array, read_npy, to_npy
from edvit.runtime.wire.messages import MAX_BATCH
from edvit.shape.image import ImageSize
from hostile_files import npy_header

HOW = Preprocessing(image_size=4, channels=3, mean=(0.0,) * 3, std=(1.0,) * 3)
IMAGE = np.arange(48, dtype=np.uint8).reshape(3, 4, 4)


def npy(array, **options):
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


@given(arrays(np.uint8, st.sampled_from([(3, 4, 4), (1, 3, 4, 4), (5, 3, 4, 4)])))
def test_an_array_comes_through_unchanged(array):
    assert np.array_equal(read_npy(to_npy(array), HOW), array)
    images, is_batch = read_array(to_npy(array), NPY, HOW)
    assert images.shape[1:] == HOW.shape
    assert is_batch == (array.ndim == 4)


def test_both_header_versions_are_read():
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, IMAGE, version=(2, 0))
    assert np.array_equal(read_npy(buffer.getvalue(), HOW), IMAGE)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (npy(IMAGE.astype(np.float32)), "dtype is float32: send uint8"),
        (npy(IMAGE.astype(np.int8)), "dtype is int8"),
        (npy(np.array([{}], dtype=object), allow_pickle=True), "dtype is object"),
        (npy(IMAGE[:, :, :3]), r"shape is \[3, 4, 3\]: send uint8 \[3, 4, 4\] or \[batch, 3, 4, 4\]"),
        (npy(IMAGE[0]), r"shape is \[4, 4\]"),
        (npy(IMAGE[None, None]), r"shape is \[1, 1, 3, 4, 4\]"),
        (npy(IMAGE[None][:0]), "holds no image"),
        (npy(np.asfortranarray(IMAGE)), "in Fortran order"),
        (npy(IMAGE)[:-1], "truncated or has bytes after its end"),
        (npy(IMAGE) + b"x", "truncated or has bytes after its end"),
        (npy(IMAGE)[:40], r"not a \.npy array"),
        (b"hello", r"not a \.npy array"),
        (pickle.dumps(IMAGE), r"not a \.npy array"),
        (b"\x93NUMPY\x09\x00" + npy(IMAGE)[8:], r"not a \.npy array"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\x7f" + b" " * 50, r"not a \.npy array"),
        (npy(IMAGE).replace(b"(3, 4, 4)", b"(3, 4, x)"), r"not a \.npy array"),
        (npy(IMAGE).replace(b"(3, 4, 4)", b"(-3,-4,4)"), "shape is"),
        (npy(IMAGE).replace(b"(3, 4, 4), ", b"(True, 4, 4)"), r"not a \.npy array"),
        (npy_header(b"(" * 9_000), r"not a \.npy array"),
        (npy_header(b"[" * 900), r"not a \.npy array"),
        (npy_header(b"'shape': (" * 90), r"not a \.npy array"),
    ],
)
def test_a_bad_array_is_refused_in_one_line(data, message):
    with pytest.raises(ImageError, match=message) as caught:
        read_npy(data, HOW)
    assert "\n" not in str(caught.value)
    assert caught.value.http_status == 400


def test_a_truth_value_is_no_size():
    grey = HOW.model_copy(update={"channels": 1})
    data = npy(IMAGE[:1])
    assert read_npy(data, grey).shape == (1, 4, 4)
    with pytest.raises(ImageError, match=r"not a \.npy array"):
        read_npy(data.replace(b"(1, 4, 4), }   ", b"(True, 4, 4), }"), grey)


def test_a_header_that_claims_a_huge_array_allocates_nothing():
    lying = npy(IMAGE[None]).replace(b"(1, 3, 4, 4), }       ", b"(9999999999, 3, 4, 4)}")
    with pytest.raises(ImageError, match="truncated"):
        read_npy(lying, HOW)


def test_a_batch_has_a_limit_of_its_own():
    most = npy(np.zeros((MAX_BATCH, 3, 4, 4), np.uint8))
    assert len(read_npy(most, HOW)) == MAX_BATCH
    with pytest.raises(TooLargeError, match="a batch of 1,025 images is too large: send at most 1,024 at once"):
        read_npy(npy(np.zeros((MAX_BATCH + 1, 3, 4, 4), np.uint8)), HOW)


@given(st.binary(max_size=300), st.booleans())
def test_any_bytes_are_read_or_refused(data, with_magic):
    try:
        array = read_npy(b"\x93NUMPY\x01\x00" * with_magic + data, HOW)
    except ImageError:
        return
    assert array.shape[-3:] == HOW.shape


@pytest.mark.parametrize("media_type", ["image/png", "audio/wav", FILE])
def test_a_file_is_no_array(media_type):
    assert read_array(b"bytes", media_type, HOW) is None


@pytest.mark.parametrize("media_type", ["", "text/plain", "application/json"])
def test_other_media_types_are_unsupported(media_type):
    with pytest.raises(UnsupportedMediaError, match="send an image file"):
        read_array(b"x", media_type, HOW)


def test_a_model_of_sounds_says_that_it_takes_sounds():
    how = HOW.model_copy(update={"spectrogram": Spectrogram()})
    with pytest.raises(UnsupportedMediaError, match=r"send a sound file \(multipart field `file`, or audio/\*\)"):
        read_array(b"x", "text/plain", how)


@pytest.mark.parametrize("media_type", ["", "text/plain", "image/png", NPY])
def test_an_empty_body_says_so_whatever_its_type(media_type):
    with pytest.raises(ImageError, match="the body is empty"):
        read_array(b"", media_type, HOW)


def test_arrays_that_are_not_square():
    how = HOW.model_copy(update={"image_size": ImageSize(4, 6)})
    images = np.arange(3 * 4 * 6, dtype=np.uint8).reshape(1, 3, 4, 6)
    assert np.array_equal(read_npy(to_npy(images), how), images)
    with pytest.raises(ImageError, match=r"shape is \[3, 6, 4\]: send uint8 \[3, 4, 6\]"):
        read_npy(to_npy(np.zeros((3, 6, 4), np.uint8)), how)
