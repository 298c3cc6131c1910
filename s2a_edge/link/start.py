"""Start what uses the current release, and go back to the one before when it keeps failing.

A start is counted before the program runs, so one that takes the whole board down counts, too. It
has succeeded when the program ends well or has run for a while; after several failures in a row the
release is marked bad and the previous one is used. What asks to stop is neither.
"""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType

from s2a_edge.link.board_process import own_environment
from s2a_edge.link.install import BoardChecks
from s2a_edge.link.releases import Mark, Releases
from s2a_edge.link.rollback import roll_back
from s2a_edge.spec.bundle import Bundle
from s2a_edge.spec.errors import LinkError, S2AError, StorageError, UsageError

# How shells and the kernel report SIGINT, SIGTERM and SIGHUP.
_ASKED_TO_STOP = frozenset(
    code for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) for code in (-s, 128 + s)
)
_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
OnNote = Callable[[str], None]


def start(
    root: Path,
    command: Sequence[str],
    *,
    attempts: int = 3,
    good_after_s: float = 120.0,
    checks: BoardChecks | None = None,
    on_note: OnNote = lambda text: None,
) -> int:
    """Run ``command`` with the current release; ``{bundle}`` and ``{runs}`` in it are its paths.

    Args:
        root: the board's folder.
        command: program and arguments.
        attempts: failed starts in a row after which the previous release is used.
        good_after_s: a program that runs so long has started.
        checks: how to ask the board, for a release that was installed elsewhere.
        on_note: told of a rollback.

    Returns:
        The program's exit code, as a shell gives it.

    Raises:
        LinkError: no release is installed.
        UsageError: the program cannot be run.
    """
    releases = Releases(root)
    with releases.lock():
        release = _usable(releases, attempts, checks or BoardChecks(), on_note)
        before = releases.mark(release)
        releases.set_mark(release, replace(before, failed_starts=before.failed_starts + 1))
    paths = {"{bundle}": str(releases.path(release)), "{runs}": str(releases.runs)}
    filled = [_filled(part, paths) for part in command]
    try:
        code, has_started = _run(filled, good_after_s, lambda: _clear(releases, release))
    except UsageError:  # no such program, which is not the release's fault
        with releases.lock():
            releases.set_mark(release, before)
        raise
    if code in _ASKED_TO_STOP and not has_started:
        with releases.lock():
            releases.set_mark(release, before)
    elif code == 0 and not has_started:
        _clear(releases, release)
    return code if code >= 0 else 128 - code


def _usable(releases: Releases, attempts: int, checks: BoardChecks, on_note: OnNote) -> str:
    """The release to start: the current one, or the one before where that keeps failing."""
    current = releases.current()
    if current is None:
        raise LinkError(
            where=str(releases.root),
            expected="an installed release",
            got="none",
            todo="flash a bundle first",
        )
    mark = releases.mark(current)
    reason = mark.bad
    if mark.failed_starts >= attempts:
        reason = f"{mark.failed_starts} failed starts"
    elif not mark.good and mark.bad is None:
        reason = _first_check(releases, current, mark, checks, on_note)
    if reason is None:
        return current
    try:
        back = roll_back(releases, reason=reason)
    except LinkError as error:
        on_note(f"release {current[:12]}: {reason}; no way back: {error.got}")
        return current
    on_note(f"release {current[:12]}: {reason}; back to release {back.current[:12]}")
    return back.current


def _first_check(
    releases: Releases, name: str, mark: Mark, checks: BoardChecks, on_note: OnNote
) -> str | None:
    """Check a release that was put on the card elsewhere; why it is bad, or None."""
    from s2a_edge.link.compatibility import require_compatible

    on_note(f"release {name[:12]}: first start here, checking it")
    try:
        with Bundle.open(releases.path(name), trust=releases.trust()) as bundle:
            facts = checks.detect()
            require_compatible(bundle.manifest, facts, any_board=True)
            checks.rehearse(bundle.path, bundle.manifest, facts)
    except StorageError:
        raise
    except S2AError as error:
        return str(error)
    releases.set_mark(name, replace(mark, good=True))
    return None


def _clear(releases: Releases, name: str) -> None:
    """The release has started: earlier failures do not count any more."""
    with releases.lock():
        releases.set_mark(name, replace(releases.mark(name), failed_starts=0, bad=None))


def _filled(part: str, paths: dict[str, str]) -> str:
    for key, path in paths.items():
        part = part.replace(key, path)
    return part


def _run(
    command: Sequence[str], good_after_s: float, on_started: Callable[[], None]
) -> tuple[int, bool]:
    """Exit code of a program, and whether it ran long enough to count as started."""
    process: subprocess.Popen[bytes] | None = None
    early: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        if process is None:
            early.append(number)
        else:
            process.send_signal(number)

    # Before the program exists, so that no request to stop gets lost or ends us instead.
    handlers = {number: signal.signal(number, forward) for number in _FORWARDED}
    try:
        process = _begin(command)
        for number in early:
            process.send_signal(number)
        try:
            return process.wait(good_after_s), False
        except subprocess.TimeoutExpired:
            on_started()
            return process.wait(), True
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _begin(command: Sequence[str]) -> subprocess.Popen[bytes]:
    try:
        # A session of its own: Ctrl-C at a terminal reaches it once, through us.
        return subprocess.Popen(command, env=own_environment(), start_new_session=True)
    except OSError as error:
        raise UsageError(
            where=f"start {command[0]}",
            expected="a program that can be run",
            got=error.strerror or "none",
            todo="check the command after --",
        ) from error
