"""A bundle, opened: its manifest, its files, its frozen weights and its initial parameters.

Everything is checked before it is handed out, and nothing in a bundle is code: opening one from an
untrusted source costs an error at worst.
"""

from __future__ import annotations

import os
import shutil
import stat
import weakref
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from s2a_edge.spec.bundle_files import (
    ADAPTERS_NAME,
    WEIGHTS_NAME,
    Listing,
    check_files,
    read_folder_listing,
)
from s2a_edge.spec.bundle_graphs import check_graphs
from s2a_edge.spec.bundle_unpack import Unpacked, unpack
from s2a_edge.spec.errors import BundleError
from s2a_edge.spec.kernels import has_native, with_kernels
from s2a_edge.spec.manifest import Manifest
from s2a_edge.spec.storage import storage_errors
from s2a_edge.spec.trust import TrustStore

Array = np.ndarray[Any, np.dtype[Any]]


class Bundle:
    """An open bundle; use it in a ``with`` block, or call :meth:`close`.

    Attributes:
        path: the folder that holds the files; for a tar, the one it was unpacked to.
        manifest: what the bundle is.
        hash: SHA-256 of ``SHA256SUMS``, 64 hex digits. It covers every file down to the last
            weight (two backbones of one architecture may have the same manifest); run folders,
            checkpoints and unpacked copies name a bundle by it.
        sums: content of ``SHA256SUMS``.
        signature: content of ``SHA256SUMS.sig``; None where the bundle is not signed.
    """

    def __init__(self, path: Path, listing: Listing, unpacked: Unpacked | None = None) -> None:
        """Use :meth:`open`, which checks what this constructor takes for granted."""
        self.path = path
        self.manifest: Manifest = listing.manifest
        self._whole_manifest = listing.manifest
        self.is_native = False
        self.hash = listing.hash
        self.sums, self.signature = listing.sums_content, listing.signature
        self._names = frozenset(listing.sums)
        # Runs at close(), when nobody refers to the bundle any more, or at interpreter exit.
        self._close = weakref.finalize(self, _release, unpacked) if unpacked else None

    @classmethod
    def open(
        cls, path: Path | str, *, verify: bool = True, trust: TrustStore | None = None
    ) -> Bundle:
        """Open a bundle that is a folder or an uncompressed tar (``.s2a``).

        Args:
            path: the bundle.
            verify: hash every file and walk every graph first. False only looks at the manifest
                and at names and sizes: for a bundle that this device has verified before.
            trust: keys one of which must have signed the bundle, which is looked at before
                anything is parsed; None: it need not be signed.

        Raises:
            BundleError: it is not a bundle, or not one that can be trusted or understood.
            BundleIntegrityError: bytes are missing or changed.
            SignatureError: nobody of ``trust`` has signed it.
            StorageError: it cannot be read, or there is no space to unpack it.
        """
        path = Path(path)
        with storage_errors(path, "to read the bundle"):
            bundle = _open(path, verify=verify, trust=trust)
            if verify:
                try:
                    check_graphs(bundle.manifest, bundle.path)
                except BaseException:
                    bundle.close()
                    raise
        return bundle

    def choose_kernels(self, *, native: bool) -> None:
        """Leave one form of each training step in ``manifest``; the last choice counts.

        Args:
            native: the form with kernels in C, where there is one; else the portable one.
        """
        self.manifest = with_kernels(self._whole_manifest, native=native)
        self.is_native = native and self.has_native

    @property
    def has_native(self) -> bool:
        """Whether the training steps come in a form with kernels in C too."""
        return has_native(self._whole_manifest)

    def file(self, name: str) -> Path:
        """Path of one of the bundle's files.

        Raises:
            BundleError: the bundle lists no file of that name.
        """
        if name not in self._names:
            raise BundleError(
                where=str(self.path),
                expected=f"one of {', '.join(sorted(self._names))}",
                got=ascii(name[:100]),
                todo="report this",
            )
        return self.path / name

    def weights(self) -> dict[str, Array]:
        """Frozen weights as read-only views of the mapped ``weights.bin``: nothing is read yet.

        Returns:
            name -> array of the manifest's dtype and shape; all share one mapping, which lives as
            long as any of them.

        Raises:
            StorageError: the file cannot be mapped.
        """
        entries = self.manifest.weights
        end = max((w.offset + w.size_bytes for w in entries), default=0)
        mapped: Array = np.empty(0, np.uint8)
        if end:  # an empty file cannot be mapped
            with storage_errors(self.file(WEIGHTS_NAME), "to map the weights"):
                mapped = np.memmap(self.file(WEIGHTS_NAME), np.uint8, "r", shape=(end,))
        return {
            w.name: mapped[w.offset : w.offset + w.size_bytes]
            .view(np.dtype(w.dtype).newbyteorder("<"))
            .reshape(w.shape)
            for w in entries
        }

    def initial_parameters(self) -> dict[str, Array]:
        """Initial values of the trainables, float32, in the manifest's order.

        Raises:
            BundleError: names, shapes or dtypes differ from the manifest's, or a value is not
                finite.
        """
        with storage_errors(self.file(ADAPTERS_NAME), "to read the parameters"):
            loaded = _load_safetensors(self.file(ADAPTERS_NAME))
        _check_parameters(loaded, self.manifest)
        return {t.name: loaded[t.name] for t in self.manifest.trainables}

    def close(self) -> None:
        """Let go of the folder; a temporary one is removed. Weights handed out stay valid."""
        if self._close:
            self._close()

    def __enter__(self) -> Bundle:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Bundle {self.path} {self.hash[:12]}>"


def _open(path: Path, *, verify: bool, trust: TrustStore | None) -> Bundle:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        raise BundleError(
            where=str(path), expected="a bundle", got="no such file", todo="check the path"
        ) from error
    if stat.S_ISDIR(mode):
        listing = read_folder_listing(path, trust)
        check_files(path, listing, hashes=verify)
        return Bundle(path, listing)
    if not stat.S_ISREG(mode):
        raise BundleError(
            where=str(path), expected="a folder or a file", got="a device", todo="check the path"
        )
    unpacked = unpack(path, verify=verify, trust=trust)
    return Bundle(unpacked.folder, unpacked.listing, unpacked)


def _release(unpacked: Unpacked) -> None:
    os.close(unpacked.lock)
    if unpacked.is_temporary:
        shutil.rmtree(unpacked.folder, ignore_errors=True)


def _load_safetensors(path: Path) -> Mapping[str, Array]:
    # What the library raises for a malformed file; its own numpy step adds KeyError for a dtype
    # that numpy lacks.
    try:
        return load_file(path)
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise BundleError(
            where=ADAPTERS_NAME,
            expected="a safetensors file",
            got=str(error)[:200] or type(error).__name__,
            todo="copy the bundle again, or pack it again",
        ) from error


def _check_parameters(loaded: Mapping[str, Array], manifest: Manifest) -> None:
    def refuse(expected: str, got: str) -> None:
        todo = "pack the bundle again"
        raise BundleError(where=ADAPTERS_NAME, expected=expected, got=got, todo=todo)

    names = {t.name for t in manifest.trainables}
    if loaded.keys() != names:
        differing = ", ".join(sorted(loaded.keys() ^ names))
        refuse("the manifest's trainables", ascii(f"a difference in {differing}"[:200]))
    for trainable in manifest.trainables:
        array = loaded[trainable.name]
        if array.dtype != np.float32 or array.shape != trainable.shape:
            expected = f"{trainable.name!a} float32 {list(trainable.shape)}"
            refuse(expected, f"{array.dtype} {list(array.shape)[:8]}")
        if not np.isfinite(array).all():
            refuse(f"finite values in {trainable.name!a}", "NaN or infinity")
