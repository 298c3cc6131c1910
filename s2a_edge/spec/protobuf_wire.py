"""The protobuf wire format: just enough to read and write ONNX files without the onnx package.

Source: https://protobuf.dev/programming-guides/encoding. A message is a sequence of fields, each a
tag (``number << 3 | wire type``) and a value. Serialized messages may be concatenated: the result
reads as both merged, which is how initializers are appended to a finished model.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, NoReturn

from s2a_edge.spec.errors import BundleError

VARINT = 0
FIXED64 = 1
LENGTH_DELIMITED = 2
FIXED32 = 5
_WIRE_NAMES = {VARINT: "a number", LENGTH_DELIMITED: "bytes"}

_MAX_VARINT_BYTES = 10  # ceil(64 / 7)
_NOTHING = memoryview(b"")
MAX_TEXT_BYTES = 65_536  # no name, domain or file name in a model comes near
MAX_ALL_TEXT_BYTES = 2**26  # names are all that readers copy: this bounds their memory


class Field(NamedTuple):
    """One field; ``value`` holds a VARINT, ``payload`` the bytes of all other wire types."""

    number: int
    wire: int
    value: int
    payload: memoryview


class WireReader:
    """Reads fields of one untrusted file; refuses malformed bytes and endless work.

    Args:
        where: file name for errors.
        max_fields: how many fields may be read in total before the file is refused.
    """

    def __init__(self, where: str, max_fields: int) -> None:
        self.where = where
        self._max_fields = max_fields
        self._fields_left = max_fields
        self._text_left_bytes = MAX_ALL_TEXT_BYTES

    def malformed(self, got: str, expected: str = "an ONNX file") -> NoReturn:
        """Raise the error of a file that is not what it should be."""
        todo = "the file is damaged or not from s2a-edge; copy or pack the bundle again"
        raise BundleError(where=self.where, expected=expected, got=got, todo=todo)

    def fields(self, message: memoryview) -> Iterator[Field]:
        """The fields of one message, in file order; nothing is copied.

        Args:
            message: bytes of the serialized message.

        Raises:
            BundleError: the bytes are not a protobuf message, or the file has too many fields.
        """
        position, end = 0, len(message)
        while position < end:
            self._fields_left -= 1
            if self._fields_left < 0:
                self.malformed(f"more than {self._max_fields} protobuf fields")
            # Nearly all tags and lengths are one byte; the call costs more than reading it.
            tag, position = message[position], position + 1
            if tag >= 0x80:
                tag, position = self._varint(message, position - 1)
            number, wire = tag >> 3, tag & 7
            if not 0 < number < 2**29:
                self.malformed(f"protobuf field number {number}")
            if wire == VARINT:
                value, position = self._varint(message, position)
                yield Field(number, wire, value, _NOTHING)
                continue
            if wire == LENGTH_DELIMITED:
                if position < end and message[position] < 0x80:
                    size, position = message[position], position + 1
                else:
                    size, position = self._varint(message, position)
            elif wire in (FIXED64, FIXED32):
                size = 8 if wire == FIXED64 else 4
            else:
                self.malformed(f"protobuf wire type {wire}")
            if size > end - position:
                self.malformed(f"a field of {size} bytes where {end - position} are left")
            yield Field(number, wire, 0, message[position : position + size])
            position += size

    def integer(self, field: Field) -> int:
        """A VARINT field as a signed 64-bit integer."""
        self._expect(field, VARINT)
        return _signed(field.value)

    def integers(self, field: Field) -> list[int]:
        """One occurrence of a repeated integer field: a number, or a packed run of them."""
        if field.wire == VARINT:
            return [_signed(field.value)]
        self._expect(field, LENGTH_DELIMITED)
        position, numbers = 0, []
        while position < len(field.payload):
            self._fields_left -= 1
            if self._fields_left < 0:
                self.malformed(f"more than {self._max_fields} protobuf fields")
            value, position = self._varint(field.payload, position)
            numbers.append(_signed(value))
        return numbers

    def message(self, field: Field) -> memoryview:
        """The bytes of a nested message or of a ``bytes`` field."""
        self._expect(field, LENGTH_DELIMITED)
        return field.payload

    def text(self, field: Field) -> str:
        """A ``string`` field; bounded, valid UTF-8."""
        self._expect(field, LENGTH_DELIMITED)
        self._text_left_bytes -= len(field.payload)
        if len(field.payload) > MAX_TEXT_BYTES or self._text_left_bytes < 0:
            self.malformed(f"a text of {len(field.payload)} bytes, or too many of them")
        try:
            return str(field.payload, "utf-8")
        except UnicodeDecodeError:
            self.malformed("a text that is not UTF-8")

    def _expect(self, field: Field, wire: int) -> None:
        # A protobuf parser would skip a known field of another wire type as unknown. Refusing it
        # keeps what we read and what the runtime reads the same.
        if field.wire != wire:
            got = f"field {field.number} with wire type {field.wire}"
            self.malformed(got, f"{_WIRE_NAMES[wire]} in field {field.number}")

    def _varint(self, message: memoryview, position: int) -> tuple[int, int]:
        value = 0
        for shift in range(0, 7 * _MAX_VARINT_BYTES, 7):
            if position >= len(message):
                self.malformed("a number cut off at the end of a message")
            byte = message[position]
            position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if value >= 2**64:
                    break
                return value, position
        self.malformed("a number of more than 64 bits")


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def varint(value: int) -> bytes:
    """A non-negative integer as a VARINT without its tag."""
    assert value >= 0
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def integer_field(number: int, value: int) -> bytes:
    """A whole VARINT field."""
    return varint(number << 3 | VARINT) + varint(value)


def length_prefix(number: int, size_bytes: int) -> bytes:
    """Tag and length of a length-delimited field; its ``size_bytes`` bytes must follow."""
    return varint(number << 3 | LENGTH_DELIMITED) + varint(size_bytes)


def bytes_field(number: int, value: bytes) -> bytes:
    """A whole length-delimited field."""
    return length_prefix(number, len(value)) + value
