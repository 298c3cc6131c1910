"""The releases on a board, and which of them is in use.

::

    ROOT/releases/<hash>/     a bundle's files, hard links into blobs/
    ROOT/current              symlink to the release in use
    ROOT/previous             symlink to the one before
    ROOT/marks/<hash>.json    what is known of a release: good, or why not; failed starts
    ROOT/runs/                runs and their checkpoints; no release ever touches them
    ROOT/trust/*.pub          if it is there, only bundles signed by these keys are installed

A symlink is replaced by renaming another over it, so ``current`` always leads somewhere. When two
change, ``previous`` is first: whoever is killed between has a board that runs as before. On the way
back ``current`` is first, since the release that is left may be the one that does not work.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated

from s2a_edge.link.blobs import BlobStore
from s2a_edge.link.board_folder import TRUST, asks_for_signatures
from s2a_edge.spec import strict_json
from s2a_edge.spec.checksums import MAX_SUMS_BYTES, SUMS_NAME, parse_sums
from s2a_edge.spec.errors import BundleError, LinkError
from s2a_edge.spec.storage import replacing, storage_errors, sync_folder
from s2a_edge.spec.strict_json import Length, Span
from s2a_edge.spec.trust import TrustStore

_NAME = re.compile(r"[0-9a-f]{64}")
_LOCK_WAIT_S = 5.0
_MAX_MARK_BYTES = 65_536


@dataclass(frozen=True)
class Mark:
    """What is known of a release.

    Attributes:
        installed: when, ISO 8601; empty where that was lost.
        good: it passed its health check on this board.
        failed_starts: starts in a row that ended before they counted as good.
        bad: why it is not to be used; None if nothing speaks against it.
    """

    installed: Annotated[str, Length(0, 64)] = ""
    good: bool = False
    failed_starts: Annotated[int, Span(0, 1_000_000)] = 0
    bad: Annotated[str, Length(0, 2000)] | None = None


class Releases:
    """The releases below ``root``; see the module's text for the layout."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / "releases"
        self.marks = root / "marks"
        self.runs = root / "runs"
        self.store = BlobStore(root)

    @contextmanager
    def lock(self, *, create: bool = False) -> Iterator[None]:
        """Hold the board: one install, rollback or start at a time.

        Args:
            create: whether to make the board's folder where it is missing.

        Raises:
            LinkError: somebody else holds it, or there is no such folder.
        """
        if not create and not self.root.is_dir():
            raise LinkError(
                where=str(self.root),
                expected="a board's folder",
                got="none",
                todo="check the path, or flash a bundle first",
            )
        with storage_errors(self.root, "to make the board's folder"):
            self.root.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            descriptor = os.open(self.root / "lock", flags, 0o644)
        try:
            _wait_for(descriptor, self.root)
            yield
        finally:
            os.close(descriptor)

    def names(self) -> tuple[str, ...]:
        """Hashes of the installed releases, sorted."""
        found = self.folder.iterdir() if self.folder.is_dir() else ()
        return tuple(sorted(p.name for p in found if _NAME.fullmatch(p.name)))

    def current(self) -> str | None:
        """Hash of the release in use."""
        return self._target("current")

    def previous(self) -> str | None:
        """Hash of the release that was in use before."""
        return self._target("previous")

    def path(self, name: str) -> Path:
        """Folder of a release."""
        return self.folder / name

    def switch(self, name: str) -> None:
        """Use release ``name`` from now on; the one in use becomes the previous one."""
        before = self.current()
        if before == name:
            return
        with storage_errors(self.root / "current", "to switch the release"):
            links = [("previous", before), ("current", name)]
            if name == self.previous():
                links.reverse()  # killed between, this would otherwise lose the way back
            for link, release in links:
                if release is not None:
                    self._point(link, release)

    def mark(self, name: str) -> Mark:
        """What is known of a release; the default where nothing is, or its file is damaged."""
        try:
            with (self.marks / f"{name}.json").open("rb") as file:
                text = file.read(_MAX_MARK_BYTES).decode("utf-8", "replace")
            return strict_json.read(Mark, strict_json.parse(text, where=name), file=name)
        except (FileNotFoundError, NotADirectoryError, BundleError):
            return Mark()

    def set_mark(self, name: str, mark: Mark) -> None:
        """Remember what is known of a release, over a power cut, too."""
        with storage_errors(self.marks, "to note the release's state"):
            self.marks.mkdir(parents=True, exist_ok=True)
        text = json.dumps(strict_json.plain(mark)) + "\n"
        with replacing(self.marks / f"{name}.json", "to note the release's state") as file:
            file.write(text.encode())

    def mark_good(self, name: str) -> None:
        """Release ``name`` works on this board."""
        installed = self.mark(name).installed or now()
        self.set_mark(name, Mark(installed, good=True))

    def mark_bad(self, name: str, reason: str) -> None:
        """Release ``name`` must not be chosen by itself again."""
        text = " ".join(reason.split())[:2000]
        self.set_mark(name, replace(self.mark(name), good=False, bad=text))

    def trust(self) -> TrustStore | None:
        """The keys that must have signed what is installed here; None: nobody has to.

        Raises:
            UsageError: the folder is there and holds no key, or something that is none.
        """
        return TrustStore.load(self.root / TRUST) if asks_for_signatures(self.root) else None

    def remove_unused(self) -> None:
        """Remove what is neither in use, nor the way back, and what killed installs left."""
        kept = {self.current(), self.previous()}
        with storage_errors(self.folder, "to remove old releases"):
            for path in self.folder.iterdir() if self.folder.is_dir() else ():
                if path.name in kept:
                    continue
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink()
            hashes: set[str] = set()
            for name in kept - {None}:
                hashes |= set(self.sums(str(name)).values())
            runtimes = self.root / "runtimes"  # folders named by the package they hold
            hashes |= {p.name for p in runtimes.iterdir()} if runtimes.is_dir() else set()
            self.store.remove_others(hashes)

    def sums(self, name: str) -> dict[str, str]:
        """Files of a release and their hashes, by its ``SHA256SUMS``; empty if that is damaged."""
        try:
            with (self.path(name) / SUMS_NAME).open("rb") as file:
                return parse_sums(file.read(MAX_SUMS_BYTES))
        except (OSError, BundleError):
            return {}

    def _target(self, link: str) -> str | None:
        """The release that a symlink names, if it is one of ours and there."""
        try:
            target = (self.root / link).readlink()
        except OSError:
            return None
        is_release = target.parent == Path("releases") and _NAME.fullmatch(target.name)
        return target.name if is_release and self.path(target.name).is_dir() else None

    def _point(self, link: str, name: str) -> None:
        temporary = self.root / f".{link}.tmp"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(Path("releases") / name)
        temporary.replace(self.root / link)
        sync_folder(self.root)


def now() -> str:
    """The time, ISO 8601, in UTC."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _wait_for(descriptor: int, root: Path) -> None:
    end_s = time.monotonic() + _LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError as error:
            if time.monotonic() > end_s:
                raise LinkError(
                    where=str(root),
                    expected="a board that nobody else works on",
                    got="another install, rollback or start that is going on",
                    todo="wait until it has ended",
                ) from error
            time.sleep(0.05)
