import io
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from edvit.errors import ImageError, TooLargeError, UnsupportedMediaError
from edvit.inputs.audio import Spectrogram
from edvit.inputs.preprocess import Preprocessing, decode_file
from edvit.runtime.http.body import FILE, NPY, read_images, read_npy, to_npy
from edvit.runtime.wire.messages import MAX_BATCH
from edvit.shape.image import ImageSize
from sounds import encoded, tone

HOW = Preprocessing(image_size=4, channels=3, mean=(0.0,) * 3, std=(1.0,) * 3)
IMAGE = np.arange(48, dtype=np.uint8).reshape(3, 4, 4)


def npy(array, **options):
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


@given(arrays(np.uint8, st.sampled_from([(3, 4, 4), (1, 3, 4, 4), (5, 3, 4, 4)])))
def test_an_array_comes_through_unchanged(array):
    assert np.array_equal(read_npy(to_npy(array), HOW), array)
    images, is_batch = read_images(to_npy(array), NPY, HOW)
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
    ],
)
def test_a_bad_array_is_refused_in_one_line(data, message):
    with pytest.raises(ImageError, match=message) as caught:
        read_npy(data, HOW)
    assert "\n" not in str(caught.value)
    assert caught.value.http_status == 400


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


def test_an_image_file_is_decoded():
    buffer = io.BytesIO()
    Image.fromarray(IMAGE.transpose(1, 2, 0)).save(buffer, format="PNG")
    images, is_batch = read_images(buffer.getvalue(), "image/png", HOW)
    assert np.array_equal(images, IMAGE[None])
    assert not is_batch


@pytest.mark.parametrize("media_type", ["", "text/plain", "application/json"])
def test_other_media_types_are_unsupported(media_type):
    with pytest.raises(UnsupportedMediaError, match="send an image file"):
        read_images(b"x", media_type, HOW)


@pytest.mark.parametrize("media_type", ["audio/wav", "audio/*", FILE])
def test_a_model_of_sounds_takes_a_sound_file(media_type):
    how = HOW.model_copy(update={"spectrogram": Spectrogram(seconds=0.2)})
    data = encoded(tone(440, 0.2))
    images, is_batch = read_images(data, media_type, how)
    assert np.array_equal(images, decode_file(data, how)[None])
    assert not is_batch


def test_a_model_of_sounds_refuses_an_image_and_a_model_of_images_a_sound():
    how = HOW.model_copy(update={"spectrogram": Spectrogram()})
    with pytest.raises(UnsupportedMediaError, match="not a sound file: send WAV"):
        read_images(b"\x89PNG\r\n", "image/png", how)
    with pytest.raises(UnsupportedMediaError, match="not an image file: send PNG"):
        read_images(encoded(tone(440)), "audio/wav", HOW)
    with pytest.raises(UnsupportedMediaError, match=r"send a sound file \(multipart field `file`, or audio/\*\)"):
        read_images(b"x", "text/plain", how)


@pytest.mark.parametrize("media_type", ["", "text/plain", "image/png", NPY])
def test_an_empty_body_says_so_whatever_its_type(media_type):
    with pytest.raises(ImageError, match="the body is empty"):
        read_images(b"", media_type, HOW)


def test_inputs_that_are_not_square():
    how = HOW.model_copy(update={"image_size": ImageSize(4, 6)})
    buffer = io.BytesIO()
    Image.effect_noise((60, 40), 80).convert("RGB").save(buffer, format="PNG")
    images, is_batch = read_images(buffer.getvalue(), "image/png", how)
    assert images.shape == (1, 3, 4, 6) and not is_batch
    assert np.array_equal(images[0], decode_file(buffer.getvalue(), how))
    assert np.array_equal(read_npy(to_npy(images), how), images)
    with pytest.raises(ImageError, match=r"shape is \[3, 6, 4\]: send uint8 \[3, 4, 6\]"):
        read_npy(to_npy(np.zeros((3, 6, 4), np.uint8)), how)
