"""The files of a bundle: which there are, how large they may be, and whether they are intact."""

from __future__ import annotations

import hashlib
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from s2a_edge.spec.checksums import MAX_SUMS_BYTES, SUMS_NAME, parse_sums, sha256_file
from s2a_edge.spec.errors import BundleError, BundleIntegrityError
from s2a_edge.spec.manifest import (
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    WEIGHTS_ALIGNMENT_BYTES,
    Manifest,
)
from s2a_edge.spec.text_inputs import TOKENIZER_NAME
from s2a_edge.spec.trust import MAX_SIGNATURE_BYTES, SIGNATURE_NAME, TrustStore

WEIGHTS_NAME = "weights.bin"
ADAPTERS_NAME = "adapters.safetensors"
MAX_MODEL_BYTES = 2**31 - 1  # protobuf's limit
MAX_TOKENIZER_BYTES = 2**27
MAX_SAFETENSORS_HEADER_BYTES = 16 * 2**20
_COPY_AGAIN = "the bundle is damaged; copy it again, or pack it again"


@dataclass(frozen=True)
class Listing:
    """What a bundle says of itself: its manifest, and the SHA-256 of each of its files.

    ``signature`` is the content of ``SHA256SUMS.sig``, None where the bundle has none.
    """

    manifest: Manifest
    sums: dict[str, str]
    sums_content: bytes
    signature: bytes | None = None

    @property
    def hash(self) -> str:
        """SHA-256 of ``SHA256SUMS``, 64 hex digits: the bundle's name, over all its files."""
        return hashlib.sha256(self.sums_content).hexdigest()

    def size_limits(self, name: str) -> tuple[int, int]:
        """Fewest and most bytes that file ``name`` may have by what the manifest says."""
        if name == WEIGHTS_NAME:
            ends = [w.offset + w.size_bytes for w in self.manifest.weights]
            end = max(ends, default=0)
            return end, end + WEIGHTS_ALIGNMENT_BYTES - 1
        if name == ADAPTERS_NAME:
            size_bytes = sum(t.size_bytes for t in self.manifest.trainables)
            return size_bytes, size_bytes + MAX_SAFETENSORS_HEADER_BYTES
        if name == MANIFEST_NAME:
            return 1, MAX_MANIFEST_BYTES
        if name == SUMS_NAME:
            return 1, MAX_SUMS_BYTES
        if name == SIGNATURE_NAME:
            return 1, MAX_SIGNATURE_BYTES
        if name == TOKENIZER_NAME:
            return 1, MAX_TOKENIZER_BYTES
        return 1, MAX_MODEL_BYTES


def read_listing(
    manifest_content: bytes,
    sums_content: bytes,
    signature: bytes | None = None,
    trust: TrustStore | None = None,
) -> Listing:
    """Both descriptions of a bundle, checked against each other.

    Args:
        manifest_content: of ``manifest.json``.
        sums_content: of ``SHA256SUMS``.
        signature: of ``SHA256SUMS.sig``, if there is one.
        trust: who must have signed, looked at before anything is parsed; None: nobody has to.

    Raises:
        SignatureError: nobody of ``trust`` has signed.
        BundleIntegrityError: the manifest's bytes are not those that were packed.
        BundleError: one of them is malformed, or they name different files.
    """
    if trust is not None:
        trust.require(sums_content, signature)
    sums = parse_sums(sums_content)
    manifest_hash = hashlib.sha256(manifest_content).hexdigest()
    check_hash(MANIFEST_NAME, sums.get(MANIFEST_NAME, "no line"), manifest_hash)
    try:
        text = manifest_content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BundleError(
            where=MANIFEST_NAME, expected="UTF-8", got=str(error), todo=_COPY_AGAIN
        ) from error
    manifest = Manifest.from_json(text)
    expected = {MANIFEST_NAME, *manifest.files()}
    if sums.keys() != expected:
        differing = ", ".join(sorted(sums.keys() ^ expected))
        raise BundleError(
            where=SUMS_NAME,
            expected="the files that the manifest names",
            got=f"a difference in {differing[:200]}",
            todo=_COPY_AGAIN,
        )
    return Listing(manifest, sums, sums_content, signature)


def read_folder_listing(folder: Path, trust: TrustStore | None = None) -> Listing:
    """:func:`read_listing` of a bundle that is a folder."""
    for name in (MANIFEST_NAME, SUMS_NAME):
        if not (folder / name).exists():
            _not_a_bundle(folder, f"no {name}")
    contents = []
    for name, limit in ((MANIFEST_NAME, MAX_MANIFEST_BYTES), (SUMS_NAME, MAX_SUMS_BYTES)):
        check_regular(folder / name, 1, limit)
        contents.append((folder / name).read_bytes())
    signature = None
    if (folder / SIGNATURE_NAME).exists() or (folder / SIGNATURE_NAME).is_symlink():
        check_regular(folder / SIGNATURE_NAME, 1, MAX_SIGNATURE_BYTES)
        signature = (folder / SIGNATURE_NAME).read_bytes()
    return read_listing(contents[0], contents[1], signature, trust)


def check_files(folder: Path, listing: Listing, *, hashes: bool) -> None:
    """Every file is there, a plain file, of a size the manifest allows, and as it was packed.

    Args:
        folder: the bundle.
        listing: what it says of itself.
        hashes: whether to read every byte; otherwise only sizes are looked at.

    Raises:
        BundleIntegrityError: names the first file that is not so.
    """
    for name, digest in listing.sums.items():
        check_regular(folder / name, *listing.size_limits(name))
        if hashes:
            check_hash(name, digest, sha256_file(folder / name))


def check_regular(path: Path, min_bytes: int, max_bytes: int) -> None:
    """``path`` is a plain file, not a link, of ``min_bytes`` to ``max_bytes``."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        integrity_error(path.name, "a file", "none")
    if not stat.S_ISREG(status.st_mode):
        integrity_error(path.name, "a plain file", "a link, folder or device")
    check_size(path.name, status.st_size, min_bytes, max_bytes)


def check_size(name: str, size_bytes: int, min_bytes: int, max_bytes: int) -> None:
    """Raise BundleIntegrityError unless ``min_bytes <= size_bytes <= max_bytes``."""
    if size_bytes < min_bytes:
        got = f"{size_bytes}: the file was cut off"
        integrity_error(name, f"at least {min_bytes} bytes", got)
    if size_bytes > max_bytes:
        integrity_error(name, f"at most {max_bytes} bytes", str(size_bytes))


def check_hash(name: str, expected: str, got: str) -> None:
    """Raise BundleIntegrityError unless two SHA-256 digests are equal."""
    if expected != got:
        integrity_error(name, f"SHA-256 {expected[:16]}…", f"{got[:16]}…: other bytes than packed")


def integrity_error(where: str, expected: str, got: str) -> NoReturn:
    """Raise the error of a bundle whose bytes are not those that were packed."""
    raise BundleIntegrityError(where=where, expected=expected, got=got, todo=_COPY_AGAIN)


def _not_a_bundle(path: Path, got: str) -> NoReturn:
    raise BundleError(
        where=str(path),
        expected="a bundle: a folder or .s2a file that `s2a-edge pack` made",
        got=got,
        todo="check the path",
    )
