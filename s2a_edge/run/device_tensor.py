"""Preallocated tensors that graphs read and write in place.

Everything that lives from one run to the next (parameters, accumulators, optimizer state, data
inputs, logits) is one of these. They lie outside the runtime's arena, so their bytes are counted
by the training state, never twice.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

Provider = Literal["cpu", "cuda"]
Array = npt.NDArray[Any]


class DeviceTensor:
    """A tensor of fixed shape and dtype, zero at first, bound to graphs by its ``address``.

    On the CPU the runtime works directly on a NumPy array's memory. On CUDA the memory is the
    device's and every :meth:`write` and :meth:`read` is a copy.

    Args:
        shape: static shape, ``()`` for a scalar.
        dtype: a NumPy dtype.
        provider: where the memory is.
    """

    def __init__(
        self, shape: tuple[int, ...], dtype: npt.DTypeLike, provider: Provider = "cpu"
    ) -> None:
        self.shape = shape
        self.dtype = np.dtype(dtype)
        self.provider: Provider = provider
        zeros: Array = np.zeros(shape, self.dtype)
        self._host: Array | None = zeros if provider == "cpu" else None
        # On the CPU the OrtValue points into the array, which must therefore stay alive: it does,
        # as ``_host``.
        self.ort_value: Any = ort.OrtValue.ortvalue_from_numpy(zeros, provider, 0)

    def part(self, first: int, shape: tuple[int, ...]) -> TensorPart:
        """A tensor that is a piece of this one's memory.

        Args:
            first: index of its first element, rows after one another.
            shape: of the piece.
        """
        return TensorPart(self, first, shape)

    @property
    def host(self) -> Array | None:
        """The memory itself, to be filled in place; None on CUDA."""
        return self._host

    @property
    def size_bytes(self) -> int:
        """Bytes of the tensor itself."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def write(self, values: npt.ArrayLike) -> None:
        """Overwrite the tensor; ``values`` must have its shape (or broadcast to it)."""
        if values is self._host:
            return  # filled in place already
        if self._host is not None:
            self._host[...] = values
            return
        staged = np.empty(self.shape, self.dtype)
        staged[...] = values
        self.ort_value.update_inplace(staged)

    def read(self) -> Array:
        """A copy of the tensor as a NumPy array."""
        if self._host is not None:
            return self._host.copy()
        copied: Array = self.ort_value.numpy()
        return copied

    def zero(self) -> None:
        """Set every element to zero."""
        self.write(0)

    @property
    def address(self) -> int:
        """Where the memory starts; two tensors with one address are the same memory."""
        return int(self.ort_value.data_ptr())


class TensorPart(DeviceTensor):
    """A piece of another tensor's memory, which it keeps alive.

    On CUDA reading and writing it copies the whole tensor: what is many pieces is read and written
    as a whole there (:class:`s2a_edge.run.state.TrainingState`).
    """

    def __init__(self, whole: DeviceTensor, first: int, shape: tuple[int, ...]) -> None:
        self.shape, self.dtype, self.provider = shape, whole.dtype, whole.provider
        self._whole = whole
        self._rows = slice(first, first + math.prod(shape))
        host = whole.host
        self._host = None if host is None else host.reshape(-1)[self._rows].reshape(shape)

    def write(self, values: npt.ArrayLike) -> None:
        """Overwrite the piece, and nothing beside it."""
        if self._host is not None:
            super().write(values)
            return
        staged = self._whole.read()
        staged.reshape(-1)[self._rows].reshape(self.shape)[...] = values
        self._whole.write(staged)

    def read(self) -> Array:
        """A copy of the piece as a NumPy array."""
        if self._host is not None:
            return self._host.copy()
        return self._whole.read().reshape(-1)[self._rows].reshape(self.shape)

    @property
    def address(self) -> int:
        """Where the piece starts."""
        return self._whole.address + self._rows.start * self.dtype.itemsize
