from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, ValidationError

from edvit.runtime.wire.packet import MAX_PAYLOAD_BYTES
from edvit.shape.image import MAX_SIDE, ImageSize

sides = st.integers(1, MAX_SIDE)


class Holder(BaseModel):
    model_config = ConfigDict(strict=True)

    size: ImageSize


@given(sides, sides)
def test_what_is_written_is_read_again(height, width):
    size = ImageSize(height, width)
    assert ImageSize.parse(str(size)) == ImageSize.of(size) == ImageSize.of([height, width]) == size
    text = Holder(size=size).model_dump_json()
    assert Holder.model_validate_json(text).size == size
    assert json.loads(text)["size"] == ([height, width] if height != width else height)


@given(sides)
def test_a_square_is_one_number_everywhere(side):
    assert ImageSize.of(side) == (side, side)
    assert str(ImageSize.of(side)) == str(side)
    assert Holder(size=side).model_dump() == {"size": side}


@pytest.mark.parametrize(("text", "size"), [("96", (96, 96)), ("96x160", (96, 160)), ("96X160", (96, 160))])
def test_height_comes_first(text, size):
    assert ImageSize.parse(text) == size
    assert (ImageSize.parse(text).height, ImageSize.parse(text).width) == size
    assert ImageSize.parse(text).pixels == size[0] * size[1]


@pytest.mark.parametrize("text", ["", "x", "96x", "x96", "96x160x3", "96 160", "9.5", "big", "1e2", "9999999999"])
def test_a_text_that_is_no_size_says_how_one_is_written(text):
    with pytest.raises(ValueError, match="is no image size: give pixels as 96, or as HEIGHTxWIDTH such as 96x160"):
        ImageSize.parse(text)


@pytest.mark.parametrize("text", ["0", "-3", "0x96", "96x0", f"{MAX_SIDE + 1}", f"96x{MAX_SIDE + 1}"])
def test_a_side_out_of_range_is_one_line(text):
    with pytest.raises(ValueError, match=f"{text} is out of range: give 1 to 4096 pixels for each side"):
        ImageSize.parse(text)


@pytest.mark.parametrize("value", ["96", "96x160", True, 96.0, [96], [96, 160, 3], [96, True], [9.5, 8], {}, None])
def test_files_and_messages_hold_whole_numbers_alone(value):
    with pytest.raises(ValidationError, match="one whole number for a square, or a height and a width"):
        Holder(size=value)


def test_the_largest_input_fits_into_a_message():
    assert 3 * ImageSize.of(MAX_SIDE).pixels <= MAX_PAYLOAD_BYTES
