"""What starts on a bare board: one request answered, or a line served.

Standard library only.
"""

from __future__ import annotations

import sys
from pathlib import Path

from s2a_edge.link import bare_agent
from s2a_edge.link.messages import (
    MAX_MESSAGE_BYTES,
    OnNote,
    Request,
    decode,
    encode,
    failure,
    success,
)
from s2a_edge.spec.errors import LinkError, S2AError


def main() -> None:
    """``agent ROOT``: one request on stdin, its answer on stdout."""
    mode, root = sys.argv[1:3]
    assert mode == "agent", mode
    answer_one(Path(root).expanduser())


def answer_one(root: Path) -> None:
    """Answer the request on stdin."""
    out = sys.stdout.buffer

    def note(text: str) -> None:
        out.write(encode({"note": text}))
        out.flush()

    try:
        request = decode(sys.stdin.buffer.read(MAX_MESSAGE_BYTES + 1))
        answer = success(_handle(root, request, note))
    except S2AError as error:
        answer = failure(error)
    out.write(encode(answer))
    out.flush()


def _handle(root: Path, request: Request, note: OnNote) -> object:
    known = ("hello", "held", "admit", "runtime")
    if request.get("op") not in known:
        raise LinkError(
            where=str(request.get("op"))[:40],
            expected="s2a-edge on the board",
            got="none",
            todo="flash with --with-runtime, or install it there and say ?python=PATH",
        )
    return bare_agent.handle(root, request, note)
