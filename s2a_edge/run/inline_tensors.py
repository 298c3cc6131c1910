"""The constants inside a graph file, as arrays that a session takes over instead of copying.

Before version 1.24 ONNX Runtime copies a graph's inline initializers into its arena: up to 1.22 all
of them (decoding tables are a MiB each), in 1.23 those of up to 127 bytes, 256 bytes for each. A
plan does not count them there. Handed over from outside they lie in ordinary memory, as they do in
later versions.
"""

from __future__ import annotations

import math
import mmap
from pathlib import Path

import numpy as np

from s2a_edge.run.device_tensor import Array
from s2a_edge.spec.errors import BundleError
from s2a_edge.spec.onnx_facts import DTYPES
from s2a_edge.spec.protobuf_wire import WireReader

_MAX_FIELDS = 2_000_000
_MODEL_GRAPH, _GRAPH_INITIALIZER = 7, 5  # field numbers of onnx.proto
_DIMS, _DATA_TYPE, _NAME, _RAW_DATA, _LOCATION = 1, 2, 8, 9, 14


def inline_tensors(path: Path) -> dict[str, Array]:
    """Copies of the main graph's inline initializers, by name.

    Those that NumPy has no type for (4-bit ones), or whose bytes are not stored raw, are left out:
    the runtime may count them, they are few and small.

    Raises:
        BundleError: the file is missing or is no ONNX model.
    """
    try:
        with path.open("rb") as file:
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # ValueError: an empty file
        raise BundleError(
            where=path.name,
            expected="a graph file",
            got=str(error),
            todo="check the bundle with `sha256sum -c SHA256SUMS`, then pack it again",
        ) from error
    wire, found = WireReader(path.name, _MAX_FIELDS), {}
    for field in wire.fields(memoryview(mapping)):
        if field.number != _MODEL_GRAPH:
            continue
        for part in wire.fields(wire.message(field)):
            if part.number == _GRAPH_INITIALIZER:
                name, array = _tensor(wire, wire.message(part))
                if array is not None:
                    found[name] = array
    return found


def _tensor(wire: WireReader, message: memoryview) -> tuple[str, Array | None]:
    """Name of a TensorProto, and its values if they can be handed over."""
    name, data_type, dims = "", 0, []
    raw: memoryview | None = None
    is_external = False
    for field in wire.fields(message):
        if field.number == _DIMS:
            dims += wire.integers(field)
        elif field.number == _DATA_TYPE:
            data_type = wire.integer(field)
        elif field.number == _NAME:
            name = wire.text(field)
        elif field.number == _RAW_DATA:
            raw = wire.message(field)
        elif field.number == _LOCATION:
            is_external = wire.integer(field) != 0
    type_name, bits = DTYPES.get(data_type, ("", 0))
    if is_external or not raw or bits < 8 or type_name == "bfloat16":
        return name, None
    dtype = np.dtype(type_name)
    if len(raw) != math.prod(dims) * dtype.itemsize:
        wire.malformed(f"{len(raw)} bytes in {name!a}", f"{type_name}{dims}")
    # A copy: the runtime's kernels want their operands aligned, which a file's fields are not.
    return name, np.frombuffer(raw, dtype.newbyteorder("<")).astype(dtype).reshape(dims)
