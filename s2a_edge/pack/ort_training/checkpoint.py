"""The checkpoint file of onnxruntime's On-Device Training API.

A FlatBuffers file of the schema ``checkpoint.fbs`` (onnxruntime 1.19,
``onnxruntime/core/flatbuffers/schema``), file identifier ``ODTC``. Writing it takes no
onnxruntime-training; what that library reads of it is tested in an environment that has it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import flatbuffers
import numpy as np

from s2a_edge.spec.errors import InternalError
from s2a_edge.spec.storage import replacing

IDENTIFIER = b"ODTC"
# What `CheckpointState` of 1.19 writes; it refuses 1.
VERSION = 2
# Offsets are 32 bits, signed where they are relative.
MOST_BYTES = 2**31 - 1
_FLOAT = 1  # TensorDataType of ort.fbs, as ONNX numbers it


def write_checkpoint(path: Path, parameters: Mapping[str, np.ndarray]) -> None:
    """Writes the start values of what trains.

    Args:
        path: the file; replaced when all of it is there.
        parameters: float32 arrays by the names that they have as inputs of the training graph.
            All of them get gradients; what is frozen stays in the graphs.

    Raises:
        InternalError: something is not float32, or all is more than a FlatBuffers file can hold.
        StorageError: no space, no permission.
    """
    size_bytes = sum(array.nbytes for array in parameters.values())
    others = [name for name, array in parameters.items() if array.dtype != np.float32]
    if others or size_bytes > MOST_BYTES - 2**20:
        raise InternalError(where="checkpoint", expected=f"float32 and at most {MOST_BYTES} bytes",
                            got=f"{size_bytes} bytes, other types: {others[:3]}",
                            todo="tune fewer tensors (--blocks, --target-modules), or report this")
    with replacing(path, "to write the checkpoint") as file:
        file.write(_content(parameters))


def _content(parameters: Mapping[str, np.ndarray]) -> bytes:
    """``Checkpoint {version, module_state {requires_grad_params, frozen_params}}``.

    Slots are numbered in the order of the schema's fields.
    """
    builder = flatbuffers.Builder(1024)
    trained = _offsets(builder, [_tensor(builder, *item) for item in parameters.items()])
    frozen = _offsets(builder, [])
    builder.StartObject(4)
    builder.PrependUOffsetTRelativeSlot(0, trained, 0)
    builder.PrependUOffsetTRelativeSlot(1, frozen, 0)
    state = builder.EndObject()
    builder.StartObject(4)
    builder.PrependInt32Slot(0, VERSION, 0)
    builder.PrependUOffsetTRelativeSlot(1, state, 0)
    builder.Finish(builder.EndObject(), file_identifier=IDENTIFIER)
    return bytes(builder.Output())


def _tensor(builder: flatbuffers.Builder, name: str, array: np.ndarray) -> int:
    """``Tensor {name, doc_string, dims, data_type, raw_data, ...}``, little-endian."""
    little = np.ascontiguousarray(array, dtype="<f4")
    data = builder.CreateByteVector(little.tobytes())
    dims = builder.CreateNumpyVector(np.asarray(array.shape, "<i8"))
    text = builder.CreateString(name)
    builder.StartObject(7)
    builder.PrependUOffsetTRelativeSlot(0, text, 0)
    builder.PrependUOffsetTRelativeSlot(2, dims, 0)
    builder.PrependInt32Slot(3, _FLOAT, 0)
    builder.PrependUOffsetTRelativeSlot(4, data, 0)
    return int(builder.EndObject())


def _offsets(builder: flatbuffers.Builder, offsets: Sequence[int]) -> int:
    """A vector of tables."""
    builder.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    return int(builder.EndVector())


__all__ = ["IDENTIFIER", "VERSION", "write_checkpoint"]
