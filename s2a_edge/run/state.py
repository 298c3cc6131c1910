"""Everything that training changes: parameters, accumulated gradients, optimizer state.

One buffer per role, allocated once, of which each trainable is a piece; the training graph takes
the pieces, as input and output alike, the optimizer one chunk of all buffers after the other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from s2a_edge.run.device_tensor import Array, DeviceTensor, Provider
from s2a_edge.run.loss_scale import LossScale
from s2a_edge.spec.errors import CheckpointError
from s2a_edge.spec.manifest import Trainable
from s2a_edge.spec.state_layout import state_layout

SLOTS: Mapping[str, tuple[str, ...]] = {"adamw": ("m", "v"), "sgd": ("m",)}
"""Optimizer -> roles of its state: first moment (or momentum) m, second moment v."""


class TrainingState:
    """Float32 tensors by role and trainable.

    Args:
        trainables: what the bundle trains; shapes as in the manifest.
        optimizer: ``"adamw"`` or ``"sgd"``: which state it keeps.
        provider: where the tensors are.
        loss_scale: to begin with, of float16 graphs.

    Attributes:
        loss_scale: None where gradients are not scaled.
    """

    def __init__(
        self,
        trainables: Sequence[Trainable],
        optimizer: str,
        provider: Provider = "cpu",
        loss_scale: LossScale | None = None,
    ) -> None:
        self.loss_scale = loss_scale
        self.slots = SLOTS[optimizer]
        self.names = tuple(t.name for t in trainables)
        self.layout = state_layout((t.name, math.prod(t.shape), t.decay) for t in trainables)
        self._buffers = {
            role: DeviceTensor((self.layout.elements,), np.float32, provider)
            for role in ("param", "acc", *self.slots)
        }
        self._tensors = {
            f"{role}.{t.name}": buffer.part(self.layout.first[t.name], tuple(t.shape))
            for role, buffer in self._buffers.items()
            for t in trainables
        }

    @property
    def size_bytes(self) -> int:
        """Bytes of all buffers: (2 + slots) x 4 bytes per trained number, and what aligns them."""
        return sum(buffer.size_bytes for buffer in self._buffers.values())

    def chunk(self, first: int, *roles: str) -> dict[str, DeviceTensor]:
        """The optimizer's operands by role: float32 [chunk_elements], from element ``first`` on."""
        shape = (self.layout.chunk_elements,)
        return {role: self._buffers[role].part(first, shape) for role in roles}

    def gradients(self) -> Array:
        """All accumulated gradients, float32 [elements]; on the CPU the memory itself."""
        buffer = self._buffers["acc"]
        return buffer.read() if buffer.host is None else buffer.host

    def inputs(self, *roles: str) -> dict[str, DeviceTensor]:
        """Tensors by input port: ``param.head.bias`` for the role ``param``."""
        return {f"{role}.{n}": self._tensors[f"{role}.{n}"] for role in roles for n in self.names}

    def outputs(self, *roles: str) -> dict[str, DeviceTensor]:
        """The same tensors by output port: ``param_out.head.bias`` for the role ``param``."""
        return {
            f"{role}_out.{n}": self._tensors[f"{role}.{n}"] for role in roles for n in self.names
        }

    def zero_accumulators(self) -> None:
        """Forget all gradients, as after every optimizer step."""
        self._buffers["acc"].zero()

    def read(self, role: str) -> dict[str, Array]:
        """Copies of one role's tensors by trainable."""
        return {name: array.copy() for name, array in self._arrays(role).items()}

    def _arrays(self, role: str) -> dict[str, Array]:
        """One role's tensors by trainable, on the CPU the memory itself."""
        buffer = self._buffers[role]
        return self._pieces(buffer.read() if buffer.host is None else buffer.host, role)

    def _pieces(self, buffer: Array, role: str) -> dict[str, Array]:
        shapes = {name: self._tensors[f"{role}.{name}"].shape for name in self.names}
        first = self.layout.first
        return {name: buffer[first[name] : first[name] + math.prod(shape)].reshape(shape)
                for name, shape in shapes.items()}

    def snapshot(self) -> dict[str, Array]:
        """Copies of parameters and optimizer state, keyed ``param.NAME``, ``m.NAME``, ``v.NAME``.

        Accumulators are left out: a snapshot is taken between optimizer steps.
        """
        roles = ("param", *self.slots)
        return {f"{role}.{n}": a for role in roles for n, a in self.read(role).items()}

    def kept(self) -> dict[str, Array]:
        """What a checkpoint holds, keyed as in :meth:`snapshot`; on the CPU the memory itself."""
        roles = ("param", *self.slots)
        return {f"{role}.{n}": a for role in roles for n, a in self._arrays(role).items()}

    def restore(self, values: Mapping[str, Array], *, where: str = "snapshot") -> None:
        """Take over a snapshot and forget all gradients.

        Args:
            values: what :meth:`snapshot` returned, or the tensors of a checkpoint.
            where: for errors, the file's name.

        Raises:
            CheckpointError: tensors are missing, unknown, or of another shape or dtype; nothing
                was changed.
        """
        own = self.inputs("param", *self.slots)
        differing = _differing(own, values)
        if differing:
            raise CheckpointError(
                where=where,
                expected=f"the {len(own)} tensors of this bundle's trainables and optimizer",
                got=f"differences in {len(differing)}: {', '.join(differing[:5])}",
                todo="resume with the bundle that the run was started with",
            )
        for role in ("param", *self.slots):
            buffer = self._buffers[role]
            host = np.zeros(buffer.shape, np.float32) if buffer.host is None else buffer.host
            for name, piece in self._pieces(host, role).items():
                piece[...] = values[f"{role}.{name}"]
            buffer.write(host)
        self.zero_accumulators()

    def load_parameters(self, values: Mapping[str, Array], *, where: str) -> None:
        """Start anew from parameters: state and gradients become zero, the loss scale its first.

        Raises:
            CheckpointError: as :meth:`restore`.
        """
        if self.loss_scale is not None:
            self.loss_scale = LossScale()
        zeros = {
            key: np.zeros(tensor.shape, np.float32)
            for key, tensor in self.inputs(*self.slots).items()
        }
        self.restore({**{f"param.{n}": v for n, v in values.items()}, **zeros}, where=where)


def _differing(own: Mapping[str, DeviceTensor], values: Mapping[str, Array]) -> list[str]:
    """What is wrong with ``values``, one short text per tensor, sorted by name."""
    return list(_differences(own, values, sorted(own.keys() | values.keys())))


def _differences(
    own: Mapping[str, DeviceTensor], values: Mapping[str, Array], keys: Iterable[str]
) -> Iterable[str]:
    for key in keys:
        if key not in values:
            yield f"{key} is missing"
        elif key not in own:
            yield f"{key} is unknown"
        elif (values[key].shape, values[key].dtype) != (own[key].shape, own[key].dtype):
            yield f"{key} is {_kind(values[key])}, not {_kind(own[key])}"


def _kind(tensor: Array | DeviceTensor) -> str:
    return f"{tensor.dtype}{list(tensor.shape)}"
