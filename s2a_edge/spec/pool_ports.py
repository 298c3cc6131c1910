"""Names of the graph outputs that have a planned place in the pool.

The pool is memory beside the runtime's arena in which the larger values of a graph lie at offsets
that were chosen when the bundle was packed. Such a value is an output of its graph, bound to its
place; its name says where that is: ``s2a.pool.OFFSET.NUMBER``.
"""

from __future__ import annotations

import re

POOL_ALIGNMENT_BYTES = 64
"""Offsets are multiples of it: a cache line, and the alignment of the widest vector loads."""

_PREFIX = "s2a.pool."
_NAME = re.compile(re.escape(_PREFIX) + r"([0-9]{1,15})\.[0-9]{1,8}")


def pool_port(offset_bytes: int, number: int) -> str:
    """The name of an output that lies ``offset_bytes`` into the pool; numbers make it unique."""
    return f"{_PREFIX}{offset_bytes}.{number}"


def pool_offset(name: str) -> int | None:
    """Where an output of this name lies in the pool, in bytes; None: not there."""
    found = _NAME.fullmatch(name)
    return None if found is None else int(found[1])


def lies_in_pool(offset_bytes: int, size_bytes: int, pool_bytes: int | None) -> bool:
    """Whether a planned place can be trusted: aligned, not empty, and inside of the pool.

    Args:
        offset_bytes: where a value begins.
        size_bytes: of the value.
        pool_bytes: of the pool; None: as large as it takes.
    """
    return (offset_bytes >= 0 and offset_bytes % POOL_ALIGNMENT_BYTES == 0 and size_bytes > 0
            and (pool_bytes is None or offset_bytes + size_bytes <= pool_bytes))


__all__ = ["POOL_ALIGNMENT_BYTES", "lies_in_pool", "pool_offset", "pool_port"]
