"""Who a bundle may come from: public keys, and the detached signatures made with them.

``SHA256SUMS.sig`` lies beside ``SHA256SUMS`` and signs its bytes; those hold the hash of the
manifest and of every other file. One line for each signer::

    ed25519 <key id> <base64 of the 64-byte signature>

A public key is one line too, ``ed25519 <base64 of the 32-byte key> <comment>``; a trust store is a
file of such lines or a folder of ``*.pub`` files. A key's id is the start of the SHA-256 of its 32
bytes: it tells which key to try, and proves nothing by itself.

The signature is plain Ed25519 over the file, so other tools can check it, too.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from s2a_edge.spec import ed25519
from s2a_edge.spec.checksums import SUMS_NAME
from s2a_edge.spec.errors import SignatureError, UsageError
from s2a_edge.spec.storage import storage_errors

SIGNATURE_NAME = f"{SUMS_NAME}.sig"
PUBLIC_SUFFIX = ".pub"
MAX_SIGNATURES = 16
MAX_SIGNATURE_BYTES = 4096
MAX_KEYS = 1024
_MAX_STORE_BYTES = 2**20
_KEY_ID_DIGITS = 16
_SIGNATURE = re.compile(r"ed25519 ([0-9a-f]{16}) ([A-Za-z0-9+/]{86}==)")
_PUBLIC = re.compile(r"ed25519 ([A-Za-z0-9+/]{43}=)(?: (.{0,200}))?")


@dataclass(frozen=True)
class PublicKey:
    """An Ed25519 public key; ``raw`` is its 32 bytes, ``comment`` says whose it is."""

    raw: bytes
    comment: str

    @property
    def key_id(self) -> str:
        """16 hex digits that name the key."""
        return hashlib.sha256(self.raw).hexdigest()[:_KEY_ID_DIGITS]

    def line(self) -> str:
        """The key as one line of a trust store."""
        return f"ed25519 {base64.b64encode(self.raw).decode()} {self.comment}".rstrip()


@dataclass(frozen=True)
class Signature:
    """One signer's line of ``SHA256SUMS.sig``; ``raw`` is the 64 bytes."""

    key_id: str
    raw: bytes

    def line(self) -> str:
        """The signature as it stands in the file."""
        return f"ed25519 {self.key_id} {base64.b64encode(self.raw).decode()}"


@dataclass(frozen=True)
class TrustStore:
    """The public keys whose signatures count; ``where`` is the file or folder they are from."""

    keys: tuple[PublicKey, ...]
    where: str

    @classmethod
    def load(cls, path: Path) -> TrustStore:
        """Read a file of public keys, or a folder of ``*.pub`` files.

        Raises:
            UsageError: it holds no key, or something that is none.
            StorageError: it cannot be read.
        """
        with storage_errors(path, "to read the trusted keys"):
            files = sorted(path.glob(f"*{PUBLIC_SUFFIX}")) if path.is_dir() else [path]
            keys = [key for file in files for key in _read_keys(file)]
        if not keys or len(keys) > MAX_KEYS:
            raise UsageError(
                where=str(path),
                expected=f"1 to {MAX_KEYS} public keys",
                got=str(len(keys)),
                todo="give the .pub file that `s2a-edge keygen` wrote, or a folder of such files",
            )
        return cls(tuple(keys), str(path))

    def require(self, content: bytes, signatures: bytes | None) -> PublicKey:
        """The trusted key that signed ``content``.

        Args:
            content: the bytes of ``SHA256SUMS``.
            signatures: the bytes of ``SHA256SUMS.sig``; None where there is no such file.

        Raises:
            SignatureError: unsigned, damaged, or signed by nobody who is trusted.
        """
        if signatures is None:
            raise self._refusal(f"no {SIGNATURE_NAME}: the bundle is not signed")
        signed = parse_signatures(signatures)
        known = {key.key_id: key for key in self.keys}
        for signature in signed:
            key = known.get(signature.key_id)
            if key is not None and ed25519.is_signature(key.raw, content, signature.raw):
                return key
        by_known = [s.key_id for s in signed if s.key_id in known]
        if by_known:
            raise self._refusal(f"a signature of key {by_known[0]} over other bytes")
        raise self._refusal(f"one by unknown key {', '.join(s.key_id for s in signed)}")

    def _refusal(self, got: str) -> SignatureError:
        return SignatureError(
            where=SIGNATURE_NAME,
            expected=f"a signature by a key of {self.where}",
            got=got,
            todo="get the bundle from whom you trust, or add the signer's .pub file to the store",
        )


def parse_signatures(content: bytes) -> tuple[Signature, ...]:
    """The lines of ``SHA256SUMS.sig``.

    Raises:
        SignatureError: it is too long, empty, or a line is no signature.
    """
    lines = content.decode("ascii", "replace").removesuffix("\n").split("\n")
    matches = [_SIGNATURE.fullmatch(line) for line in lines[:MAX_SIGNATURES]]
    found = tuple(Signature(m[1], base64.b64decode(m[2])) for m in matches if m)
    if len(content) > MAX_SIGNATURE_BYTES or len(found) != len(lines):
        raise SignatureError(
            where=SIGNATURE_NAME,
            expected=f"at most {MAX_SIGNATURES} lines `ed25519 KEY_ID SIGNATURE`",
            got="something else",
            todo="the file is damaged: copy the bundle again, or sign it again",
        )
    return found


def format_signatures(signatures: Iterable[Signature]) -> bytes:
    """Signatures as the content of ``SHA256SUMS.sig``."""
    return "".join(f"{signature.line()}\n" for signature in signatures).encode("ascii")


def parse_public_key(line: str, where: str) -> PublicKey:
    """One line of a trust store.

    Raises:
        UsageError: the line is no public key; ``where`` names it.
    """
    match = _PUBLIC.fullmatch(line)
    try:
        raw = base64.b64decode(match[1], validate=True) if match else b""
    except binascii.Error:
        raw = b""
    if match is None or len(raw) != ed25519.PUBLIC_BYTES:
        raise UsageError(
            where=where,
            expected="a line `ed25519 BASE64 COMMENT`",
            got=ascii(line[:60]),
            todo="give the .pub file that `s2a-edge keygen` wrote",
        )
    return PublicKey(raw, (match[2] or "").strip())


def _read_keys(file: Path) -> list[PublicKey]:
    with file.open("rb") as opened:
        content = opened.read(_MAX_STORE_BYTES)
    lines = content.decode("utf-8", "replace").splitlines()
    return [
        parse_public_key(line.strip(), f"{file}: line {number}")
        for number, line in enumerate(lines, start=1)
        if line.strip() and not line.startswith("#")
    ]
