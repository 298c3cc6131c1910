"""``SHA256SUMS``: the lines that ``sha256sum -c`` reads, and streaming SHA-256."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

from s2a_edge.spec.errors import BundleError

SUMS_NAME = "SHA256SUMS"
MAX_SUMS_BYTES = 65_536
CHUNK_BYTES = 2**20
_LINE = re.compile(r"([0-9a-f]{64}) [ *]([A-Za-z0-9][A-Za-z0-9._-]{0,95})")


def sha256_file(path: Path) -> str:
    """SHA-256 of a file as 64 hex digits, read in chunks of 1 MiB."""
    digest = hashlib.sha256()
    buffer = bytearray(CHUNK_BYTES)
    view = memoryview(buffer)
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(buffer):
            digest.update(view[:size])
    return digest.hexdigest()


def format_sums(sums: Mapping[str, str]) -> bytes:
    """``{name: hex digest}`` as the content of ``SHA256SUMS``, in the order given."""
    return "".join(f"{digest}  {name}\n" for name, digest in sums.items()).encode("ascii")


def parse_sums(content: bytes) -> dict[str, str]:
    """The content of ``SHA256SUMS`` as ``{name: hex digest}``.

    Raises:
        BundleError: a line is not ``<64 hex digits>  <plain file name>``, or names repeat.
    """
    sums: dict[str, str] = {}
    text = content.decode("ascii", errors="replace")
    for number, line in enumerate(text.removesuffix("\n").split("\n"), start=1):
        match = _LINE.fullmatch(line)
        if match is None or match[2] in sums:
            raise BundleError(
                where=f"{SUMS_NAME}: line {number}",
                expected="64 hex digits, two blanks, a plain file name, each name once",
                got=ascii(line[:80]),
                todo="the file is damaged; copy or pack the bundle again",
            )
        sums[match[2]] = match[1]
    return sums
