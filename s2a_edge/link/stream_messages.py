"""Messages on a channel's byte stream: a kind, a length, a payload.

::

    kind u8, length u32, payload      little-endian

``REQUEST``, ``NOTE`` and ``ANSWER`` hold one JSON object (:mod:`s2a_edge.link.messages`), ``CHUNK``
a piece of a file: ``coding u8`` (0 plain, 1 zlib), then at most 16 KiB once unpacked. Each chunk is
packed by itself, so that a file can go on from any of them. Standard library only.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from s2a_edge.link.messages import MAX_MESSAGE_BYTES
from s2a_edge.spec.errors import LinkError

REQUEST, NOTE, ANSWER, CHUNK = 1, 2, 3, 4
CHUNK_BYTES = 16 * 1024
_HEADER = struct.Struct("<BI")
_PLAIN, _ZLIB = 0, 1
_MAX_BYTES = {
    REQUEST: MAX_MESSAGE_BYTES,
    NOTE: MAX_MESSAGE_BYTES,
    ANSWER: MAX_MESSAGE_BYTES,
    CHUNK: CHUNK_BYTES + 1024,
}


def pack_message(kind: int, payload: bytes) -> bytes:
    """A message as it goes on the stream."""
    return _HEADER.pack(kind, len(payload)) + payload


def pack_chunk(data: bytes) -> bytes:
    """A piece of a file as a CHUNK message, packed where that makes it shorter."""
    packed = zlib.compress(data, 6)
    if len(packed) < len(data):
        return pack_message(CHUNK, bytes([_ZLIB]) + packed)
    return pack_message(CHUNK, bytes([_PLAIN]) + data)


def unpack_chunk(payload: bytes) -> bytes:
    """The piece of a file that a CHUNK holds.

    Raises:
        LinkError: it is malformed, or larger than a chunk may be.
    """
    coding, data = payload[:1], payload[1:]
    if coding == bytes([_PLAIN]) and len(data) <= CHUNK_BYTES:
        return data
    if coding == bytes([_ZLIB]):
        unpacker = zlib.decompressobj()
        try:
            unpacked = unpacker.decompress(data, CHUNK_BYTES + 1)
        except zlib.error:
            unpacked = b""
        if unpacker.eof and not unpacker.unused_data and len(unpacked) <= CHUNK_BYTES:
            return unpacked
    raise _malformed(f"a chunk of {len(payload)} bytes that cannot be unpacked")


class MessageReader:
    """Takes the stream apart; holds at most one message."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Kinds and payloads of the messages that end in ``data``.

        Raises:
            LinkError: a kind is unknown, or a length is beyond what it may be.
        """
        self._buffer += data
        while len(self._buffer) >= _HEADER.size:
            kind, size_bytes = _HEADER.unpack_from(self._buffer)
            if size_bytes > _MAX_BYTES.get(kind, -1):
                raise _malformed(f"a message of kind {kind} with {size_bytes} bytes")
            end = _HEADER.size + size_bytes
            if len(self._buffer) < end:
                return
            payload = bytes(self._buffer[_HEADER.size : end])
            del self._buffer[:end]
            yield kind, payload


def _malformed(got: str) -> LinkError:
    return LinkError(
        where="stream",
        expected="a message of this protocol",
        got=got,
        todo="use the same version of s2a-edge on both sides",
    )
