"""Which bundle a run belongs to, down to the last weight."""

from __future__ import annotations

import hashlib

from s2a_edge.spec.bundle import Bundle
from s2a_edge.spec.checksums import SUMS_NAME
from s2a_edge.spec.storage import storage_errors


def bundle_identity(bundle: Bundle) -> str:
    """SHA-256 of ``SHA256SUMS``, 64 hex digits: it covers every file of the bundle.

    The manifest alone would not do: two backbones of one architecture have the same.

    Raises:
        StorageError: the file cannot be read.
    """
    path = bundle.path / SUMS_NAME
    with storage_errors(path, "to read the checksums"):
        return hashlib.sha256(path.read_bytes()).hexdigest()
