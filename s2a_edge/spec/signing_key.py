"""Secret keys, and signing a bundle with one: ``s2a-edge keygen`` and ``s2a-edge sign``.

The secret key is a PEM file (PKCS #8, RFC 8410) that only its owner may read; OpenSSL reads it.
"""

from __future__ import annotations

import base64
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from s2a_edge.spec import ed25519
from s2a_edge.spec.bundle_files import Listing, check_files, read_folder_listing
from s2a_edge.spec.bundle_tar import read_members
from s2a_edge.spec.bundle_unpack import check_members
from s2a_edge.spec.bundle_write import write_tar_members
from s2a_edge.spec.errors import UsageError
from s2a_edge.spec.storage import replacing, storage_errors, sync_folder
from s2a_edge.spec.trust import (
    PUBLIC_SUFFIX,
    SIGNATURE_NAME,
    PublicKey,
    Signature,
    format_signatures,
    parse_signatures,
)

SECRET_SUFFIX = ".key"
# What stands before the 32 bytes in every unencrypted PKCS #8 file of an Ed25519 key (RFC 8410).
_PKCS8_START = bytes.fromhex("302e020100300506032b657004220420")
_BEGIN, _END = "-----BEGIN PRIVATE KEY-----", "-----END PRIVATE KEY-----"
_MAX_KEY_BYTES = 4096


@dataclass(frozen=True)
class SigningKey:
    """A secret key; ``where`` is its file. The key itself never appears in a text of this class."""

    secret: bytes
    where: str

    def __repr__(self) -> str:
        return f"<SigningKey {self.where}>"

    @property
    def public(self) -> PublicKey:
        """Its public key; the comment is the file's name."""
        return PublicKey(ed25519.public_of(self.secret), Path(self.where).stem)

    def sign(self, content: bytes) -> Signature:
        """A signature of ``content``, the bytes of ``SHA256SUMS``."""
        return Signature(self.public.key_id, ed25519.sign(self.secret, content))


def generate_key(out: Path) -> tuple[Path, Path]:
    """Write a new key pair, ``OUT.key`` (mode 0600) and ``OUT.pub``; neither may exist.

    Returns:
        Paths of the secret and of the public key.

    Raises:
        UsageError: one of the files exists: a key is never overwritten.
        StorageError: the folder cannot be written.
    """
    secret_file = out.parent / f"{out.name}{SECRET_SUFFIX}"
    public_file = out.parent / f"{out.name}{PUBLIC_SUFFIX}"
    for file in (secret_file, public_file):
        if file.exists() or file.is_symlink():
            raise UsageError(
                where=str(file),
                expected="a new name",
                got="a file that exists",
                todo="choose another name: an overwritten key cannot be had back",
            )
    key = SigningKey(ed25519.generate(), str(secret_file))
    body = base64.b64encode(_PKCS8_START + key.secret).decode()
    with storage_errors(secret_file, "to write the keys"):
        descriptor = os.open(secret_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as pem:
            pem.write(f"{_BEGIN}\n{body}\n{_END}\n")
            pem.flush()
            os.fsync(pem.fileno())
        with replacing(public_file, "to write the keys") as public:
            public.write(f"{key.public.line()}\n".encode())
        sync_folder(out.parent)
    return secret_file, public_file


def load_key(path: Path) -> SigningKey:
    """Read a secret key.

    Raises:
        UsageError: it is none, is encrypted, or others may read it.
        StorageError: it cannot be read.
    """
    with storage_errors(path, "to read the secret key"), path.open("rb") as file:
        mode = os.fstat(file.fileno()).st_mode
        text = file.read(_MAX_KEY_BYTES).decode("ascii", "replace")
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise UsageError(
            where=str(path),
            expected="a secret key that only its owner may read",
            got=f"mode {stat.S_IMODE(mode):04o}",
            todo=f"chmod 600 {path}",
        )
    lines = [line.strip() for line in text.strip().splitlines()]
    try:
        content = base64.b64decode("".join(lines[1:-1]), validate=True)
    except ValueError:
        content = b""
    secret = content.removeprefix(_PKCS8_START)
    if lines[:1] != [_BEGIN] or lines[-1:] != [_END] or len(secret) != ed25519.SECRET_BYTES:
        raise UsageError(
            where=str(path),
            expected="an unencrypted Ed25519 key in PEM (PKCS #8)",
            got="another kind of file",
            todo="give the .key file that `s2a-edge keygen` wrote",
        )
    return SigningKey(secret, str(path))


def sign_bundle(path: Path, key: SigningKey) -> Signature:
    """Add ``key``'s signature to a bundle, folder or ``.s2a``; other signers' stay.

    Every file is hashed first: what is signed is what is there.

    Raises:
        BundleError: it is no bundle, or a damaged one.
        StorageError: it cannot be read or written; it is unchanged then.
    """
    with storage_errors(path, "to sign the bundle"):
        if not path.exists():
            raise UsageError(
                where=str(path), expected="a bundle", got="no such file", todo="check the path"
            )
        return _sign_folder(path, key) if path.is_dir() else _sign_tar(path, key)


def _signed(listing: Listing, key: SigningKey) -> tuple[Signature, bytes]:
    """The new signature, and the whole content of the signature file with it."""
    made = key.sign(listing.sums_content)
    before = () if listing.signature is None else parse_signatures(listing.signature)
    kept = [signature for signature in before if signature.key_id != made.key_id]
    content = format_signatures([*kept, made])
    parse_signatures(content)  # not one more than may be
    return made, content


def _sign_folder(path: Path, key: SigningKey) -> Signature:
    listing = read_folder_listing(path)
    check_files(path, listing, hashes=True)
    made, content = _signed(listing, key)
    with replacing(path / SIGNATURE_NAME, "to sign the bundle") as file:
        file.write(content)
    return made


def _sign_tar(path: Path, key: SigningKey) -> Signature:
    with path.open("rb") as tar:
        members = read_members(tar, path.name)
        listing = check_members(tar, members, path.name)
        made, content = _signed(listing, key)
        write_tar_members(tar, members, listing, content, path)
    return made
