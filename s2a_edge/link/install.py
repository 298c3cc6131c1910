"""Install a release from blobs that are there: all of it, or nothing that anybody notices.

Signature, hashes, compatibility, unpacking, bringing to the disk, a rehearsed step, the switch of
``current``, the mark. Until the switch nothing that is in use changes, and the switch is one
rename: a process killed at any moment leaves a board that runs, and the next install repairs the
rest.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from s2a_edge.link.blobs import link_or_copy, remove, sha256_of
from s2a_edge.link.board_process import BoardFacts, detect_board, rehearse_step
from s2a_edge.link.compatibility import require_compatible
from s2a_edge.link.releases import Mark, Releases, now
from s2a_edge.link.tuned_state import require_matching
from s2a_edge.spec.bundle_files import Listing, check_files, integrity_error, read_listing
from s2a_edge.spec.bundle_graphs import check_graphs
from s2a_edge.spec.checksums import MAX_SUMS_BYTES, SUMS_NAME, parse_sums
from s2a_edge.spec.errors import BundleError, S2AError, StorageError
from s2a_edge.spec.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, Manifest
from s2a_edge.spec.storage import (
    replacing,
    require_free_space,
    storage_errors,
    sync_folder,
)
from s2a_edge.spec.trust import MAX_SIGNATURE_BYTES, SIGNATURE_NAME

_CHECKPOINTS_KEPT = 2  # last and best, each replaced by way of a second file
OnStep = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """What is asked of an install.

    Attributes:
        any_board: take a bundle that was packed for another device.
        new_trainables: take one that existing checkpoints do not fit.
        elsewhere: the folder is a card of another machine: what only the board can check is left
            to the first start there.
    """

    any_board: bool = False
    new_trainables: bool = False
    elsewhere: bool = False


@dataclass(frozen=True)
class BoardChecks:
    """How the board is asked; tests put others in place."""

    detect: Callable[[], BoardFacts] = detect_board
    rehearse: Callable[[Path, Manifest, BoardFacts], float] = rehearse_step


@dataclass(frozen=True)
class Installed:
    """What an install did.

    Attributes:
        release: hash of the release, now in use.
        previous: hash of the one to roll back to.
        switched: whether it was not in use before.
        step_ms: duration of the rehearsed step; None where it is left to the first start.
        signed_by: id of the trusted key that signed it; None where the board trusts anybody.
    """

    release: str
    previous: str | None
    switched: bool
    step_ms: float | None
    signed_by: str | None


@dataclass(frozen=True)
class Offer:
    """A bundle as its checksums describe it: contents of ``SHA256SUMS`` and its signature file."""

    sums: bytes
    signature: bytes | None
    options: Options = field(default_factory=Options)

    @property
    def release(self) -> str:
        """The hash that the release will have."""
        return hashlib.sha256(self.sums).hexdigest()


def check_offer(releases: Releases, offer: Offer) -> tuple[dict[str, str], str | None]:
    """Signature first, then the checksums: before anything is sent, and again before installing.

    Returns:
        Files and their hashes, and the id of the trusted key that signed.

    Raises:
        SignatureError: nobody whom the board trusts has signed.
        BundleError: the checksums are malformed.
    """
    trust = releases.trust()
    signed_by = None if trust is None else trust.require(offer.sums, offer.signature).key_id
    if len(offer.sums) > MAX_SUMS_BYTES or len(offer.signature or b"") > MAX_SIGNATURE_BYTES:
        raise BundleError(
            where=SUMS_NAME,
            expected=f"at most {MAX_SUMS_BYTES} bytes",
            got=str(len(offer.sums)),
            todo="pack the bundle again",
        )
    return parse_sums(offer.sums), signed_by


def install(
    releases: Releases,
    offer: Offer,
    *,
    checks: BoardChecks | None = None,
    on_step: OnStep = lambda step: None,
) -> Installed:
    """Install what ``offer`` describes; hold the lock. All of its blobs must be in the store.

    Args:
        releases: of the board.
        offer: the bundle.
        checks: how to ask the board.
        on_step: told what begins: ``hashes``, ``compatibility`` and so on.

    Raises:
        SignatureError: nobody trusted has signed it.
        BundleIntegrityError: a blob is damaged; it is removed, so that it is sent again.
        BundleError: it is not a bundle that can be trusted or understood.
        DeviceError: the board cannot run it, or the rehearsed step failed.
        BudgetError: too little memory.
        CheckpointError: the runs of the release in use have other trainables.
        StorageError: the file system refused.
    """
    checks = checks or BoardChecks()
    on_step("signature")
    sums, signed_by = check_offer(releases, offer)
    on_step("hashes")
    listing = _verify(releases, sums, offer)
    manifest = listing.manifest
    facts = None
    if not offer.options.elsewhere:
        on_step("compatibility")
        facts = checks.detect()
        require_compatible(manifest, facts, any_board=offer.options.any_board)
    if not offer.options.new_trainables:
        require_matching(releases, manifest)
    # Room for the run: checkpoints hold each trainable and its optimizer state.
    states = 3 * sum(t.size_bytes for t in manifest.trainables)
    require_free_space(releases.root, 2 * _CHECKPOINTS_KEPT * states)
    on_step("unpacking")
    folder = _unpack(releases, listing, offer)
    step_ms = None
    if facts is not None:
        on_step("health check")
        step_ms = _rehearsed(releases, offer.release, folder, manifest, facts, checks)
    on_step("switch")
    switched = releases.current() != offer.release
    releases.switch(offer.release)
    if facts is not None:
        releases.mark_good(offer.release)
    releases.remove_unused()
    return Installed(offer.release, releases.previous(), switched, step_ms, signed_by)


def _verify(releases: Releases, sums: dict[str, str], offer: Offer) -> Listing:
    """Every byte again: a power cut or a worn card may have changed what was whole on arrival."""
    store = releases.store
    for name, sha256 in sums.items():
        path = store.path(sha256)
        if not path.is_file():
            integrity_error(name, "a blob on the board", "none")
        with storage_errors(path, "to verify the bundle"):
            found = sha256_of(path)
        if found != sha256:
            store.discard(sha256)
            integrity_error(name, f"SHA-256 {sha256[:16]}…", f"{found[:16]}…: damaged on the board")
    manifest = sums.get(MANIFEST_NAME)
    if manifest is None:
        integrity_error(SUMS_NAME, f"a line for {MANIFEST_NAME}", "none")
    with store.path(manifest).open("rb") as file:
        content = file.read(MAX_MANIFEST_BYTES + 1)
    return read_listing(content, offer.sums, offer.signature)


def _unpack(releases: Releases, listing: Listing, offer: Offer) -> Path:
    """The release's folder, complete and on the disk; one that was damaged is repaired."""
    folder = releases.path(offer.release)
    staging = releases.folder / f".new-{offer.release}"
    with storage_errors(folder, "to unpack the release"):
        if folder.is_symlink():  # to wherever; what is in there is not ours to change
            folder.unlink()
        is_new = not folder.is_dir()
        target = staging if is_new else folder
        if is_new:
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir(parents=True)
        _remove_strangers(target, listing)
        for name, sha256 in listing.sums.items():
            _put(releases.store.path(sha256), target / name, sha256)
        _write(target / SUMS_NAME, offer.sums)
        if offer.signature is None:
            (target / SIGNATURE_NAME).unlink(missing_ok=True)
        else:
            _write(target / SIGNATURE_NAME, offer.signature)
        check_files(target, listing, hashes=False)
        check_graphs(listing.manifest, target)
        sync_folder(target)
        releases.set_mark(offer.release, Mark(releases.mark(offer.release).installed or now()))
        if is_new:
            staging.rename(folder)
        sync_folder(releases.folder)
    return folder


def _remove_strangers(folder: Path, listing: Listing) -> None:
    """What is in a release's folder and not of the release."""
    names = {*listing.sums, SUMS_NAME, SIGNATURE_NAME}
    for path in folder.iterdir():
        if path.name not in names or path.is_symlink() or not path.is_file():
            remove(path)


def _put(blob: Path, target: Path, sha256: str) -> None:
    """``target`` as ``blob``, unless it is that already."""
    if target.is_file() and (target.samefile(blob) or sha256_of(target) == sha256):
        return
    link_or_copy(blob, target)


def _write(path: Path, content: bytes) -> None:
    if path.is_file() and path.read_bytes() == content:
        return
    with replacing(path, "to unpack the release") as file:
        file.write(content)


def _rehearsed(
    releases: Releases,
    name: str,
    folder: Path,
    manifest: Manifest,
    facts: BoardFacts,
    checks: BoardChecks,
) -> float:
    try:
        return checks.rehearse(folder, manifest, facts)
    except StorageError:
        raise  # says nothing about the release
    except S2AError as error:
        releases.mark_bad(name, str(error))
        raise
