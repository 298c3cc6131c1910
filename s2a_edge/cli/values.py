"""Values of options, as people type them: ``3x224x224``, ``bias,head``, ``0.485,0.456,0.406``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from s2a_edge.spec.errors import UsageError

_MAX_LABELS_BYTES = 2**24  # a labels file is a list of names; anything larger is another file


def parse_shape(text: str, *, flag: str) -> tuple[int, ...]:
    """``3x224x224`` as ``(3, 224, 224)``.

    Raises:
        UsageError: a part is no positive integer.
    """
    parts = text.lower().split("x")
    if not all(part.isdecimal() and part.isascii() and int(part) > 0 for part in parts):
        raise UsageError(
            where=flag,
            expected="a shape without the batch, such as 3x224x224",
            got=repr(text),
            todo="write positive integers joined by x",
        )
    return tuple(int(part) for part in parts)


def parse_names(text: str) -> tuple[str, ...]:
    """``bias,head`` as ``("bias", "head")``; empty parts are dropped."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def parse_reals(text: str, *, flag: str) -> tuple[float, float, float]:
    """One number for all channels, or three: ``0.5`` or ``0.485,0.456,0.406``.

    Raises:
        UsageError: neither one nor three numbers.
    """
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) == 1:
        numbers *= 3
    if len(numbers) != 3:
        raise UsageError(
            where=flag,
            expected="one number, or three joined by commas",
            got=repr(text),
            todo="write one value for all channels or one for each",
        )
    red, green, blue = numbers
    return red, green, blue


def parse_bits(text: str) -> int | Literal["auto"]:
    """``4`` as 4, and ``auto``.

    Raises:
        UsageError: it is neither.
    """
    if text.strip().lower() == "auto":
        return "auto"
    if not (text.isdecimal() and text.isascii()):
        raise UsageError(
            where="--bits", expected="auto or a number", got=repr(text), todo="write --bits 4"
        )
    return int(text)


def parse_counts(text: str, *, flag: str) -> tuple[int, ...]:
    """``8,2,4`` as ``(2, 4, 8)``: sorted, once each.

    Raises:
        UsageError: a part is no positive integer.
    """
    parts = parse_names(text)
    if not parts or not all(
        part.isdecimal() and part.isascii() and int(part) > 0 for part in parts
    ):
        raise UsageError(
            where=flag,
            expected="positive integers, such as 8 or 2,4,8",
            got=repr(text),
            todo="write one batch size, or several joined by commas",
        )
    return tuple(sorted({int(part) for part in parts}))


def read_labels(path: Path) -> tuple[str, ...]:
    """Class names from a text file, one a line, in the order of the classes.

    Raises:
        UsageError: the file cannot be read, is empty, or a name is empty or comes twice.
    """

    def refuse(got: str) -> UsageError:
        return UsageError(
            where=f"--labels {path}",
            expected="a UTF-8 text file with one class name a line",
            got=got,
            todo="list every class once, in the order of the classes",
        )

    try:
        with path.open("rb") as file:
            content = file.read(_MAX_LABELS_BYTES + 1)
        text = content.decode()
    except OSError as error:
        raise refuse((error.strerror or "an unreadable file").lower()) from error
    except UnicodeDecodeError as error:
        raise refuse(f"bytes that are no UTF-8 at offset {error.start}") from error
    if len(content) > _MAX_LABELS_BYTES:
        raise refuse("a file above 16 MiB")
    names = [line.strip() for line in text.rstrip().splitlines()]
    if not names:
        raise refuse("an empty file")
    seen: set[str] = set()
    for number, name in enumerate(names, start=1):
        if not name or name in seen:
            raise refuse(f"{name!r} again in line {number}" if name else f"an empty line {number}")
        seen.add(name)
    return tuple(names)
