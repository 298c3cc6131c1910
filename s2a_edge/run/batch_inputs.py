"""The bound data inputs of a graph, which the data reader fills in place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from s2a_edge.run.data import BatchBuffer
from s2a_edge.run.device_tensor import Array, DeviceTensor
from s2a_edge.run.engine import Engine
from s2a_edge.spec.manifest import InputSpec


class BatchInputs:
    """The bound data inputs of one graph, filled in place.

    Args:
        engine: where the tensors are.
        inputs: the bundle's data inputs; shapes without the batch.
        batch: rows of the graph.
    """

    def __init__(self, engine: Engine, inputs: Sequence[InputSpec], batch: int) -> None:
        self.batch = batch
        self.tensors: dict[str, DeviceTensor] = {
            spec.name: engine.tensor((batch, *spec.shape), spec.dtype) for spec in inputs
        }

    @property
    def size_bytes(self) -> int:
        """Bytes of all data inputs."""
        return sum(tensor.size_bytes for tensor in self.tensors.values())

    def write(self, values: Mapping[str, Array]) -> None:
        """Fill the first rows from [k, *shape] arrays, k <= batch; zero the other rows."""
        for name, tensor in self.tensors.items():
            rows = values[name]
            if len(rows) < self.batch:
                padded = np.zeros(tensor.shape, tensor.dtype)
                padded[: len(rows)] = rows
                rows = padded
            tensor.write(rows)

    def buffers(self, count: int) -> list[BatchBuffer] | None:
        """The bound memory itself as the data reader's buffer, where one is enough (CPU)."""
        arrays = {name: tensor.host for name, tensor in self.tensors.items()}
        if count != 1 or any(array is None for array in arrays.values()):
            return None
        inputs = {name: array for name, array in arrays.items() if array is not None}
        return [BatchBuffer(inputs)]
