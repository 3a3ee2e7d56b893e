"""Height and width of a model's input: declared, checked and written down here alone."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

MAX_SIDE = 4096
"""Pixels of a side, at most: an input of so many each way, in three channels, still fits into one message."""


class ImageSize(NamedTuple):
    """Height and width of a model's input, pixels.

    In JSON a square size is one number, as it was before there were others, and every other one is `[height, width]`.
    On the command line these are `96` and `96x160`.
    """

    height: int
    width: int

    @classmethod
    def of(cls, value: ImageSize | int | Sequence[int]) -> ImageSize:
        """The size that one number (a square) or a height and a width stand for.

        Raises:
            ValueError: it is something else, or a side is not from 1 to `MAX_SIDE` pixels.
        """
        sides = (value, value) if isinstance(value, int) else tuple(value) if isinstance(value, list | tuple) else ()
        if len(sides) != 2 or any(isinstance(side, bool) or not isinstance(side, int) for side in sides):
            raise ValueError("give one whole number for a square, or a height and a width, in pixels")
        size = cls(*sides)
        if min(size) < 1 or max(size) > MAX_SIDE:
            raise ValueError(f"{size} is out of range: give 1 to {MAX_SIDE} pixels for each side")
        return size

    @classmethod
    def parse(cls, text: str) -> ImageSize:
        """The size that `96` or `96x160` (HEIGHTxWIDTH) stands for. Raises ValueError."""
        found = re.fullmatch(r"\s*(-?\d{1,9})(?:[x×](-?\d{1,9}))?\s*", text, re.IGNORECASE | re.ASCII)
        if found is None:
            raise ValueError(f"{text} is no image size: give pixels as 96, or as HEIGHTxWIDTH such as 96x160")
        height, width = found[1], found[2] or found[1]
        return cls.of((int(height), int(width)))

    @property
    def pixels(self) -> int:
        """Pixels of the whole input."""
        return self.height * self.width

    @property
    def json(self) -> int | list[int]:
        """As it stands in JSON."""
        return self.height if self.height == self.width else [self.height, self.width]

    def __str__(self) -> str:
        """As it is typed: `96` or `96x160`."""
        return str(self.height) if self.height == self.width else f"{self.height}x{self.width}"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        to_json = core_schema.plain_serializer_function_ser_schema(lambda size: size.json)
        return core_schema.no_info_plain_validator_function(cls.of, serialization=to_json)
