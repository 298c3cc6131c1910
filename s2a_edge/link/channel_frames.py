"""The two kinds of frames that a channel consists of, and what both of its halves keep to.

docs/serial-protocol.md has the format of each frame. Standard library only.
"""

from __future__ import annotations

import struct

DATA, ACK = 0x03, 0x04
DATA_HEADER = struct.Struct("<BIIQ")  # type, session, number, offset
ACK_FRAME = struct.Struct("<BIQQIQ")  # type, session, next, limit, largest, mask
MASK_BITS = 64
WINDOW_BYTES = 128 * 1024


def session_of(content: bytes) -> int | None:
    """Session of a DATA or ACK frame; None for other frames."""
    if content[0] in (DATA, ACK) and len(content) >= 5:
        return int.from_bytes(content[1:5], "little")
    return None
