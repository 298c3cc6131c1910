"""What starts on a bare board: one request answered, or a line served.

Standard library only.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from s2a_edge.link import bare_agent
from s2a_edge.link.line import FdLine, LineLostError
from s2a_edge.link.line_server import LineServer
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

_IDLE_S = 60.0
READY = b"s2a-edge: ready"


def main() -> None:
    """``agent ROOT``: one request on stdin. ``serve ROOT``: a terminal, and then removes itself."""
    mode, root = sys.argv[1], Path(sys.argv[2]).expanduser()
    if mode == "serve":
        try:
            serve_terminal(root)
        finally:
            Path(sys.argv[0]).unlink(missing_ok=True)  # it was pushed for this one time
    else:
        answer_one(root)


def agent_command(root: Path) -> list[str]:
    """What answers a request: the runtime that was pushed, or else this program."""
    if (root / "runtime").is_dir():
        paths = [str(root / "runtime"), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = f"PYTHONPATH={os.pathsep.join(paths)}"
        return ["env", environment, sys.executable, "-m", "s2a_edge.link.agent", str(root)]
    return [sys.executable, sys.argv[0], "agent", str(root)]


def serve_terminal(root: Path) -> None:
    """Serve the host on stdin and stdout until it is done; the terminal is then as before."""
    line = FdLine(0, 1)
    try:
        print(READY.decode(), flush=True)
        LineServer(line, root, agent_command).serve(_IDLE_S)
    except LineLostError:
        pass  # the shell that started this notices by itself
    finally:
        line.restore()


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
