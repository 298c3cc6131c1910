"""Frames on a serial line: COBS between zero bytes, each with a CRC-32.

::

    0x00  COBS( type u8, body, crc32 u32 of type and body )  0x00

All numbers are little-endian. COBS (Cheshire and Baker, "Consistent Overhead Byte Stuffing", 1999)
takes zeros out of a frame at the cost of one byte in 254, so a zero is always a boundary: whatever
a kernel or a damaged byte puts into the stream costs the frame it falls into and no other. What is
no frame is skipped.

Standard library only; the ``cobs`` package is used where it is installed, because it is faster.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator

MAX_FRAME_BYTES = 4096  # encoded; more without a zero is noise
_CRC = struct.Struct("<I")
_BLOCK_BYTES = 254


class NotAFrameError(ValueError):
    """Bytes between two zeros that are no frame."""


def encode_stuffed(data: bytes) -> bytes:
    """``data`` without zeros: each block begins with the distance to the next zero or block."""
    out = bytearray()
    *before, last = data.split(b"\0")
    for run in before:
        full_bytes = len(run) // _BLOCK_BYTES * _BLOCK_BYTES
        _add_full_blocks(out, run[:full_bytes])
        out.append(len(run) - full_bytes + 1)
        out += run[full_bytes:]
    full_bytes = len(last) // _BLOCK_BYTES * _BLOCK_BYTES
    _add_full_blocks(out, last[:full_bytes])
    # Nothing follows a full block at the end; an empty one stands for nothing, or a final zero.
    if full_bytes < len(last) or not last:
        out.append(len(last) - full_bytes + 1)
        out += last[full_bytes:]
    return bytes(out)


def _add_full_blocks(out: bytearray, run: bytes) -> None:
    for start in range(0, len(run), _BLOCK_BYTES):
        out.append(0xFF)
        out += run[start : start + _BLOCK_BYTES]


def decode_stuffed(stuffed: bytes) -> bytes:
    """The inverse of :func:`encode_stuffed`.

    Raises:
        NotAFrameError: it holds a zero, or its last block is cut off.
    """
    out, position = bytearray(), 0
    while position < len(stuffed):
        code = stuffed[position]
        block = stuffed[position + 1 : position + code]
        if not code or len(block) != code - 1 or 0 in block:
            raise NotAFrameError("no COBS")
        out += block
        position += code
        if code <= _BLOCK_BYTES and position < len(stuffed):
            out.append(0)
    return bytes(out)


def _coders() -> tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]:
    try:
        from cobs import cobs  # type: ignore[import-untyped]  # it ships no type information
    except ImportError:
        return encode_stuffed, decode_stuffed

    def decode(stuffed: bytes) -> bytes:
        try:
            return bytes(cobs.decode(stuffed))
        except cobs.DecodeError as error:
            raise NotAFrameError(str(error)) from error

    return cobs.encode, decode


_encode, _decode = _coders()


def encode_frame(content: bytes) -> bytes:
    """A frame with ``content`` (type and body), zeros included."""
    return b"\0" + _encode(content + _CRC.pack(zlib.crc32(content))) + b"\0"


def decode_frame(stuffed: bytes) -> bytes:
    """The content of what stands between two zeros.

    Raises:
        NotAFrameError: it is no frame, or a damaged one.
    """
    data = _decode(stuffed)
    content, crc = data[: -_CRC.size], data[-_CRC.size :]
    if len(data) <= _CRC.size or _CRC.pack(zlib.crc32(content)) != crc:
        raise NotAFrameError("wrong CRC-32")
    return content


class Deframer:
    """Takes a stream of bytes apart into frames.

    Attributes:
        damaged: how often there was something between two zeros that was no frame.
    """

    def __init__(self) -> None:
        self._begun = bytearray()
        self._is_too_long = False
        self.damaged = 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Contents of the frames that end in ``data``; it may begin and end anywhere."""
        *ended, rest = data.split(b"\0")
        for part in ended:
            stuffed = bytes(self._begun) + part
            was_too_long, self._is_too_long = self._is_too_long, False
            self._begun.clear()
            if not stuffed and not was_too_long:
                continue
            try:
                if was_too_long or len(stuffed) > MAX_FRAME_BYTES:
                    raise NotAFrameError("too long")
                content = decode_frame(stuffed)
            except NotAFrameError:
                self.damaged += 1
            else:
                yield content
        self._begun += rest
        if len(self._begun) > MAX_FRAME_BYTES:
            self._begun.clear()
            self._is_too_long = True
