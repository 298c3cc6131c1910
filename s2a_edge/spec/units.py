"""Sizes in bytes, as people write and read them.

``MiB`` is 2**20 bytes and ``MB`` is 10**6: the two are never mixed. A bare ``M`` is refused because
it could be either.
"""

from __future__ import annotations

import re
from fractions import Fraction

from s2a_edge.spec.errors import UsageError

KIB = 2**10
MIB = 2**20
GIB = 2**30

_BYTES_PER_UNIT = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": KIB,
    "mib": MIB,
    "gib": GIB,
    "tib": 2**40,
}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)")
_MAX_TEXT_CHARS = 40  # longer texts are no sizes, and int() is quadratic in their length
_MAX_BYTES = 2**63 - 1


def parse_bytes(text: str | int, *, where: str = "size") -> int:
    """A size such as ``600MiB``, ``640 MB``, ``1.5GiB`` or ``629145600`` in bytes.

    Units are case-insensitive; a size without one is in bytes. A fraction of a byte is dropped.

    Args:
        text: the size; an ``int`` is taken as bytes.
        where: the flag or key it came from, for the error.

    Raises:
        UsageError: ``text`` is no size, its unit is unknown or ambiguous, or it exceeds int64.
    """
    written = str(text).strip()
    found = _SIZE.fullmatch(written) if len(written) <= _MAX_TEXT_CHARS else None
    if isinstance(text, bool) or found is None:
        raise _not_a_size(where, repr(written[:_MAX_TEXT_CHARS]))
    number, unit = found.groups()
    if unit.lower() not in _BYTES_PER_UNIT:
        raise _not_a_size(where, f"the unit {unit!r}")
    size_bytes = int(Fraction(number) * _BYTES_PER_UNIT[unit.lower()])
    if size_bytes > _MAX_BYTES:
        raise _not_a_size(where, f"{written}, which is more than 2**63 bytes")
    return size_bytes


def format_bytes(size_bytes: int) -> str:
    """A size in the largest binary unit that keeps it at 1 or above: ``600.0 MiB``, ``1.50 GiB``.

    The text is rounded, to a tenth of a KiB or MiB or a hundredth of a GiB; negative sizes keep
    their sign.
    """
    sign, size = ("-", -size_bytes) if size_bytes < 0 else ("", size_bytes)
    if size >= GIB:
        return f"{sign}{size / GIB:.2f} GiB"
    if size >= MIB:
        return f"{sign}{size / MIB:.1f} MiB"
    if size >= KIB:
        return f"{sign}{size / KIB:.1f} KiB"
    return f"{sign}{size} B"


def _not_a_size(where: str, got: str) -> UsageError:
    return UsageError(
        where=where,
        expected="a size such as 600MiB (2**20 bytes each) or 640MB (10**6 bytes each)",
        got=got,
        todo="write a number and one of B, kB, KiB, MB, MiB, GB, GiB, TB, TiB",
    )
