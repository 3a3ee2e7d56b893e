import io
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, features

from edvit.errors import ConfigError, ServiceError, WireError
from edvit.runtime.wire.image_encoding import check_encoding, decode_images, encode_images

SIDES = st.integers(1, 20)
batches = st.tuples(st.integers(1, 3), st.sampled_from([1, 3]), SIDES, SIDES).flatmap(
    lambda shape: hnp.arrays(np.uint8, shape)
)


def smooth(channels, size=96):
    """A picture that compresses like a photograph."""
    rng = np.random.default_rng(channels)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8)).resize((size, size), Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(coarse).transpose(2, 0, 1)[None, :channels])


def piece(picture, **options):
    stream = io.BytesIO()
    picture.save(stream, **options)
    return struct.pack("<I", stream.tell()) + stream.getvalue()


@pytest.mark.parametrize("encoding", ["raw", "webp"])
@given(batches)
def test_lossless_encodings_keep_every_bit(encoding, images):
    assert np.array_equal(decode_images(encode_images(images, encoding), images.shape, encoding), images)


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_keeps_the_picture_and_is_the_smallest(channels):
    images = smooth(channels)
    payload = encode_images(images, "jpeg")
    found = decode_images(payload, images.shape, "jpeg")
    assert np.abs(found.astype(int) - images).mean() < 2
    assert len(payload) < len(encode_images(images, "webp")) < images.nbytes


def test_a_view_that_is_not_contiguous_is_sent_as_it_looks():
    images = smooth(3).transpose(0, 1, 3, 2)
    for encoding in ("raw", "webp"):
        assert np.array_equal(decode_images(encode_images(images, encoding), images.shape, encoding), images)


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (piece(Image.new("RGB", (8, 9)), format="WEBP", lossless=True), "8x9 pixels where its header says 8x8"),
        (piece(Image.new("RGB", (20_000, 8)), format="PNG"), "not webp"),
        (piece(Image.new("RGB", (8, 8)), format="JPEG"), "not webp"),
        (piece(Image.new("RGBA", (8, 8), (9, 9, 9, 9)), format="WEBP", lossless=True), "other colour channels"),
        (struct.pack("<I", 4) + b"RIFF", "not webp"),
        (struct.pack("<I", 0), "not webp"),
        (struct.pack("<I", 2**32 - 1) + b"RIFF", "ends within"),
        (b"\1\0", "ends within"),
        (2 * piece(Image.new("RGB", (8, 8)), format="WEBP", lossless=True), "2 images where its header says 1"),
        (b"", "0 images where its header says 1"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_is_not_the_batch_is_refused(payload, message):
    with pytest.raises(WireError, match=message):
        decode_images(payload, (1, 3, 8, 8), "webp")


@given(st.integers(0, 10**6), st.integers(1, 255))
def test_a_damaged_image_is_refused_or_of_the_right_shape(where, change):
    payload = bytearray(encode_images(smooth(3), "jpeg"))
    payload[where % len(payload)] ^= change
    try:
        found = decode_images(bytes(payload), (1, 3, 96, 96), "jpeg")
    except WireError:
        return
    assert (found.shape, found.dtype) == ((1, 3, 96, 96), np.uint8)


def test_an_encoding_must_be_known_and_possible(monkeypatch):
    with pytest.raises(ConfigError, match="unknown image encoding 'png'; known: raw, webp, jpeg"):
        check_encoding("png")
    payload = encode_images(smooth(3), "webp")
    monkeypatch.setattr(features, "check", lambda name: False)
    check_encoding("raw")
    with pytest.raises(ConfigError, match="without webp: choose another"):
        check_encoding("webp")
    with pytest.raises(ServiceError, match="the device was built without webp: serve with another"):
        decode_images(payload, (1, 3, 96, 96), "webp")
