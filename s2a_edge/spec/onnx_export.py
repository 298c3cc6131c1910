"""Give a finished ONNX graph its weights, on a board, without the onnx package.

A protobuf parser merges concatenated messages, so a model without weights becomes one with
weights by appending ``ModelProto{graph{initializer}}`` messages to its bytes: one per tensor, so
that no more than one chunk is ever held in memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from s2a_edge.spec.errors import InternalError, SourceError
from s2a_edge.spec.onnx_facts import DTYPES
from s2a_edge.spec.protobuf_wire import bytes_field, integer_field, length_prefix
from s2a_edge.spec.storage import replacing, require_free_space, storage_errors

MAX_MODEL_BYTES = 2**31 - 1  # protobuf refuses more in one message
_CHUNK_BYTES = 2**20
_CODES = {name: (code, bits) for code, (name, bits) in DTYPES.items()}

# onnx.proto: field numbers.
_MODEL_GRAPH, _GRAPH_INITIALIZER = 7, 5
_TENSOR_DIMS, _TENSOR_DATA_TYPE, _TENSOR_NAME, _TENSOR_RAW_DATA = 1, 2, 8, 9


@dataclass(frozen=True)
class NamedTensor:
    """A tensor to append.

    Attributes:
        name: the ONNX value it defines.
        dtype: ONNX element type, ``float32``.
        shape: its dimensions.
        data: its little-endian, row-major bytes, or an array of them; ``np.memmap`` is best, then
            pages come and go as they are written. A function gives them when they are written.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: memoryview | np.ndarray[Any, Any] | Callable[[], np.ndarray[Any, Any]]

    @property
    def size_bytes(self) -> int:
        """What dtype and shape need."""
        _, bits = _CODES.get(self.dtype, (0, 0))
        return (math.prod(self.shape) * bits + 7) // 8

    def byte_view(self) -> memoryview:
        """The bytes, copied only where the array is not contiguous.

        Raises:
            InternalError: there are more or fewer than dtype and shape need.
        """
        data = self.data() if callable(self.data) else self.data
        if isinstance(data, np.ndarray):
            flat = np.ascontiguousarray(data.astype(data.dtype.newbyteorder("<"), copy=False))
            data = flat.reshape(-1).view(np.uint8).data
        # cast() refuses views without elements.
        view = data.cast("B") if data.nbytes else memoryview(b"")
        _, bits = _CODES.get(self.dtype, (0, 0))
        if bits == 0 or len(view) != self.size_bytes:
            raise InternalError(
                where=f"initializer {self.name}",
                expected=f"{self.size_bytes} bytes of {self.dtype} {self.shape}",
                got=f"{len(view)} bytes",
                todo="report this with the bundle's manifest.json",
            )
        return view

    def message_head(self) -> bytes:
        """All of ``ModelProto{graph{initializer}}`` up to the tensor's own bytes."""
        (code, _), size_bytes = _CODES[self.dtype], self.size_bytes
        tensor = b"".join(integer_field(_TENSOR_DIMS, dim) for dim in self.shape)
        tensor += integer_field(_TENSOR_DATA_TYPE, code)
        tensor += bytes_field(_TENSOR_NAME, self.name.encode())
        tensor += length_prefix(_TENSOR_RAW_DATA, size_bytes)
        initializer = length_prefix(_GRAPH_INITIALIZER, len(tensor) + size_bytes) + tensor
        return length_prefix(_MODEL_GRAPH, len(initializer) + size_bytes) + initializer


def initializer_stream(tensors: Iterable[NamedTensor]) -> Iterator[bytes | memoryview]:
    """Chunks of at most 1 MiB to append to a serialized model, so that it gains ``tensors``.

    Raises:
        InternalError: a tensor's bytes do not match its dtype and shape.
    """
    for tensor in tensors:
        view = tensor.byte_view()
        yield tensor.message_head()
        for start in range(0, len(view), _CHUNK_BYTES):
            yield view[start : start + _CHUNK_BYTES]


def export_model(skeleton: Path, tensors: Iterable[NamedTensor], out: Path) -> None:
    """Write ``skeleton`` with ``tensors`` as its initializers to ``out``: all of it, or nothing.

    Args:
        skeleton: an ONNX model whose nodes read values that nothing defines.
        tensors: their definitions; the list is held, their data is streamed.
        out: the file to create or replace.

    Raises:
        SourceError: the result would pass protobuf's limit of 2 GiB for one file.
        StorageError: no space, no permission.
        InternalError: a tensor's bytes do not match its dtype and shape.
    """
    tensors = tuple(tensors)
    with storage_errors(skeleton, "to read the model"):
        total_bytes = skeleton.stat().st_size
    for tensor in tensors:
        total_bytes += len(tensor.message_head()) + tensor.size_bytes
    if total_bytes > MAX_MODEL_BYTES:
        raise SourceError(
            where=str(out),
            expected=f"a model of at most {MAX_MODEL_BYTES} bytes (protobuf's limit)",
            got=f"{total_bytes} bytes",
            todo="run the model from its bundle with `s2a-edge eval`, or pack a smaller backbone",
        )
    require_free_space(out.parent, total_bytes)
    with replacing(out, "to write the model") as file, skeleton.open("rb") as head:
        while chunk := head.read(_CHUNK_BYTES):
            file.write(chunk)
        for part in initializer_stream(tensors):
            file.write(part)
