"""FLAC files that were written as a stream: their header leaves the length open, and libsndfile cannot read them so.

The length is in the header of the last frame (RFC 9639, section 9.1), and is filled in.
"""

from __future__ import annotations

import re

_FRAMES_BITS = 36
_FRAMES_END = 26
"""Where in a file the number of frames ends, the last 36 bits before the digest in STREAMINFO."""
_BLOCK_SIZE = slice(10, 12)
"""Where STREAMINFO has the largest block, in samples of one channel."""
_TAIL = 1 << 20
"""Bytes at the end that hold the last frame's header; a frame of CD sound takes 16 KB."""
_FRAME = re.compile(rb"\xff[\xf8\xf9][\x10-\xff][\x00-\xaf]", re.DOTALL)
_BLOCKS = {1: 192, **{code: 144 << code for code in range(2, 6)}, **{code: 1 << code for code in range(8, 16)}}
"""Code of a block's size -> samples; 6 and 7 say that the size follows in one byte or two."""


def with_length(data: bytes) -> bytes | None:
    """The file with its length, in samples of one channel, in its header; None: it is no FLAC file, or has no frame."""
    if data[:4] != b"fLaC" or len(data) < _FRAMES_END:
        return None
    tail = max(_FRAMES_END, len(data) - _TAIL)
    for match in reversed(list(_FRAME.finditer(data, tail))):
        frames = _end_of(data[match.start() : match.start() + 16], int.from_bytes(data[_BLOCK_SIZE], "big"))
        if frames is not None and frames >> _FRAMES_BITS == 0:
            start = _FRAMES_END - 5
            rest = int.from_bytes(data[start:_FRAMES_END], "big") >> _FRAMES_BITS << _FRAMES_BITS
            return data[:start] + (rest | frames).to_bytes(5, "big") + data[_FRAMES_END:]
    return None


def _end_of(header: bytes, block_size: int) -> int | None:
    """Samples from the file's start to the end of the frame that has this header; None: it is no header."""
    number, at = _coded_number(header)
    if number is None or header[3] & 1:
        return None
    code, rate = header[2] >> 4, header[2] & 15
    size = _BLOCKS.get(code)
    if size is None:
        taken = code - 5
        size = int.from_bytes(header[at : at + taken], "big") + 1
        at += taken
    at += {12: 1, 13: 2, 14: 2}.get(rate, 0)
    if rate == 15 or at >= len(header) or _crc8(header[:at]) != header[at]:
        return None
    return size + number * (1 if header[1] & 1 else block_size)


def _coded_number(header: bytes) -> tuple[int | None, int]:
    """The number of the frame, or of its first sample, coded as UTF-8 codes characters; and where it ends."""
    first = header[4] if len(header) > 4 else 0xFF
    ones = 8 - (first ^ 0xFF).bit_length()
    rest = header[5 : 4 + max(ones, 1)]
    if ones in (1, 8) or len(rest) != max(ones, 1) - 1 or any(byte >> 6 != 2 for byte in rest):
        return None, 0
    number = first & (0x7F >> ones)
    for byte in rest:
        number = number << 6 | byte & 63
    return number, 5 + len(rest)


def _crc8(data: bytes) -> int:
    """CRC-8 with the polynomial x^8 + x^2 + x + 1."""
    crc = 0
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc << 1 ^ (7 if crc & 128 else 0)) & 255
    return crc
