"""Kills installs at chosen moments, each in a forked process, and looks at what they leave.

``python install_killer.py BUNDLES WORK POINT...``: BUNDLES holds ``a`` and ``b``. Every time the
file system is asked for something is a point; a fork of this process installs ``b`` over ``a`` and
is killed with SIGKILL at point number POINT. Prints one JSON line ``{"points": N}``, then one for
each kill: which release was in use after it, whether that one was whole, and whether the next
install put everything right. ``install_killer.py --rollback BUNDLES WORK`` rolls back from ``b`` to
``a`` instead, is killed at every point, and rolls back again where that did not work.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from s2a_edge.link.board_process import BoardFacts
from s2a_edge.link.dir_transport import DirTransport
from s2a_edge.link.flash import flash
from s2a_edge.link.install import BoardChecks
from s2a_edge.link.releases import Releases
from s2a_edge.spec.bundle import Bundle
from s2a_edge.spec.errors import S2AError

EVENTS = frozenset(
    ("open", "os.chmod", "os.link", "os.listdir", "os.mkdir", "os.remove", "os.rename", "os.rmdir",
     "os.scandir", "os.symlink", "os.truncate", "fcntl.flock", "shutil.rmtree")
)  # fmt: skip
FACTS = BoardFacts(None, "3.10.12", "1.23.0", ("CPUExecutionProvider",), None, None, 6)
CHECKS = BoardChecks(detect=lambda: FACTS, rehearse=lambda *_: 1.0)


def install(bundle: Path, board: Path) -> str:
    with Bundle.open(bundle) as opened:
        return flash(opened, DirTransport(board, CHECKS)).release


def do_until(work: Callable[[], object], point: int | None) -> int:
    """``work`` in a fork that dies at ``point``; how many points it saw if it does not."""
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        seen = 0

        def count(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal seen
            if event in EVENTS:
                if seen == point:
                    os.kill(os.getpid(), signal.SIGKILL)
                seen += 1

        sys.addaudithook(count)
        try:
            work()
            os.write(send, str(seen).encode())
        finally:
            os._exit(0)
    os.close(send)
    os.waitpid(child, 0)
    with os.fdopen(receive) as pipe:
        return int(pipe.read() or -1)


def whole(releases: Releases, name: str | None) -> bool:
    try:
        Bundle.open(releases.path(name or "none")).close()
    except S2AError:
        return False
    return True


def examine(board: Path, bundle: Path, old: str) -> dict[str, object]:
    """What is in use after the kill, and after the next install."""
    releases = Releases(board)
    current = releases.current()
    found: dict[str, object] = {"current": current, "whole": whole(releases, current)}
    new = install(bundle, board)
    tidy = not list((board / "incoming").iterdir()) and set(releases.names()) <= {old, new}
    hidden = [p.name for p in (*board.iterdir(), *releases.folder.iterdir()) if p.name[0] == "."]
    repaired = releases.current() == new and whole(releases, new) and releases.mark(new).good
    back = releases.previous() == old and whole(releases, old)
    return {**found, "repaired": repaired and back and tidy and not hidden}


def main(bundles: Path, work: Path, points: list[int]) -> None:
    old = install(bundles / "a", work / "before")
    shutil.copytree(work / "before", work / "counted", symlinks=True)
    points_seen = do_until(lambda: install(bundles / "b", work / "counted"), None)
    print(json.dumps({"points": points_seen, "old": old}))
    for point in points:
        board = work / "board"
        shutil.copytree(work / "before", board, symlinks=True)
        survived = do_until(lambda: install(bundles / "b", board), point) >= 0  # noqa: B023
        print(
            json.dumps({"point": point, "survived": survived} | examine(board, bundles / "b", old))
        )
        shutil.rmtree(board)


def main_rollback(bundles: Path, work: Path) -> None:
    for name in ("a", "b"):
        install(bundles / name, work / "before")
    for point in range(10_000):
        board = work / f"board-{point}"
        shutil.copytree(work / "before", board, symlinks=True)
        survived = do_until(lambda: call_rollback(board), point) >= 0  # noqa: B023
        releases = Releases(board)
        old = releases.current()
        found = {"point": point, "survived": survived, "whole": whole(releases, old)}
        if old == Releases(work / "before").current():
            call_rollback(board)  # the way back is still there
        is_back = releases.current() == Releases(work / "before").previous()
        print(json.dumps({**found, "back": is_back and whole(releases, releases.current())}))
        shutil.rmtree(board)
        if survived:
            return


def call_rollback(board: Path) -> None:
    DirTransport(board, CHECKS).call({"op": "rollback"}, lambda text: None)


if __name__ == "__main__":
    if sys.argv[1] == "--rollback":
        main_rollback(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        main(Path(sys.argv[1]), Path(sys.argv[2]), [int(p) for p in sys.argv[3:]])
