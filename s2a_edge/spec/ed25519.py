"""Ed25519 (RFC 8032) through the ``cryptography`` package, imported when a key is first used."""

from __future__ import annotations

import importlib
from typing import Any, cast

from s2a_edge.spec.errors import UsageError

PUBLIC_BYTES = 32
SECRET_BYTES = 32
SIGNATURE_BYTES = 64


def _library() -> Any:
    try:
        return importlib.import_module("cryptography.hazmat.primitives.asymmetric.ed25519")
    except ImportError as error:
        # Without it nothing can be verified, so nothing that must be verified is used.
        raise UsageError(
            where="signatures",
            expected="the Python package cryptography",
            got="none that can be imported",
            todo="pip install cryptography",
        ) from error


def generate() -> bytes:
    """A new secret key, 32 bytes from the system's random source."""
    return cast(bytes, _library().Ed25519PrivateKey.generate().private_bytes_raw())


def public_of(secret: bytes) -> bytes:
    """The 32-byte public key of a 32-byte secret key."""
    key = _library().Ed25519PrivateKey.from_private_bytes(secret)
    return cast(bytes, key.public_key().public_bytes_raw())


def sign(secret: bytes, message: bytes) -> bytes:
    """The 64-byte signature of ``message``."""
    key = _library().Ed25519PrivateKey.from_private_bytes(secret)
    return cast(bytes, key.sign(message))


def is_signature(public: bytes, message: bytes, signature: bytes) -> bool:
    """Whether ``signature`` is one of ``message`` by the owner of ``public``."""
    invalid = importlib.import_module("cryptography.exceptions").InvalidSignature
    try:
        _library().Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (invalid, ValueError):  # ValueError: bytes that are no key
        return False
    return True
