"""The pool: one piece of memory in which graphs of a process keep their larger values.

Which values, and where, was planned when the bundle was packed (:mod:`s2a_edge.spec.pool_ports`).
Graphs run one at a time and leave nothing there, so they share it: it is as large as the largest
of them needs.
"""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
import onnxruntime as ort

from s2a_edge.run.device_tensor import Array, Provider
from s2a_edge.run.huge_pages import advise_range
from s2a_edge.run.runtime_errors import RUNTIME_ERRORS, run_error
from s2a_edge.spec.errors import BudgetError, BundleError, InternalError
from s2a_edge.spec.pool_ports import POOL_ALIGNMENT_BYTES, lies_in_pool
from s2a_edge.spec.units import format_bytes


class Pool:
    """Memory for planned places; there is none until a graph asks for its address.

    Args:
        provider: whose memory.
        limit_bytes: what the plan grants; None: no limit.
    """

    def __init__(self, provider: Provider, limit_bytes: int | None) -> None:
        self.size_bytes = 0
        """What the graphs that were loaded need."""
        self.huge_page_bytes = 0
        """Bytes for which the kernel was asked for pages of 2 MiB, and agreed."""
        self.provider: Provider = provider
        self._limit_bytes = limit_bytes
        self._memory: Any = None

    def reserve(self, graph: str, offset_bytes: int, size_bytes: int) -> None:
        """Makes sure that the pool will hold a value.

        Args:
            graph: whose value it is, for messages.
            offset_bytes: its planned place.
            size_bytes: of the value.

        Raises:
            BundleError: the places are not those of the plan.
            InternalError: it is beyond the memory, which is made: others are bound to that.
        """
        limit_bytes = self._limit_bytes
        if not lies_in_pool(offset_bytes, size_bytes, limit_bytes):
            planned = "" if limit_bytes is None else f" below {limit_bytes}"
            raise BundleError(
                where=f"{graph}.onnx",
                expected=f"places at multiples of {POOL_ALIGNMENT_BYTES} bytes{planned}",
                got=f"{size_bytes} bytes at {offset_bytes}",
                todo="manifest and graphs do not belong together: pack the bundle again",
            )
        end_bytes = offset_bytes + size_bytes
        if self._memory is not None and end_bytes > self.size_bytes:
            raise InternalError(
                where=f"{graph}.onnx",
                expected="the graph with the largest pool to be loaded before the first one runs",
                got=f"a pool of {self.size_bytes} bytes, and a value that ends at {end_bytes}",
                todo="report this",
            )
        self.size_bytes = max(self.size_bytes, end_bytes)

    def address(self) -> int:
        """Where the memory starts, aligned; made when first asked for, and there for good.

        Raises:
            BudgetError: the system or the device refuses it.
        """
        if self._memory is None:
            self._memory = self._on_host() if self.provider == "cpu" else self._on_device()
        on_host = isinstance(self._memory, np.ndarray)
        return int(self._memory.ctypes.data if on_host else self._memory.data_ptr())

    def _on_device(self) -> Any:
        """An OrtValue; its contents are nobody's."""
        try:
            return ort.OrtValue.ortvalue_from_shape_and_type(
                [self.size_bytes], np.uint8, self.provider, 0)
        except RUNTIME_ERRORS as error:
            raise run_error(error, "pool") from error

    def _on_host(self) -> Array:
        """Bytes of a mapping of their own; their contents are nobody's."""
        try:
            # Pages of its own, which go back to the system with it; untouched ones take nothing.
            # Shared ones would be neither bounded by RLIMIT_DATA nor counted as anonymous.
            mapped = mmap.mmap(-1, self.size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except (OSError, OverflowError) as error:  # the latter: more than an address can reach
            raise BudgetError(
                where="pool",
                expected=f"{format_bytes(self.size_bytes)} of memory",
                got=getattr(error, "strerror", None) or str(error),
                todo="use a smaller micro-batch or a larger budget; the last checkpoint is intact",
                missing_bytes=self.size_bytes,
            ) from error
        memory: Array = np.frombuffer(mapped, np.uint8)
        start = int(memory.ctypes.data)
        self.huge_page_bytes = advise_range(start, start + self.size_bytes)
        return memory


__all__ = ["Pool"]
