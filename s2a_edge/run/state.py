"""Everything that training changes: parameters, accumulated gradients, optimizer state.

One tensor per trainable and role, allocated once, bound to the graphs as input and output alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from s2a_edge.run.device_tensor import Array, DeviceTensor, Provider
from s2a_edge.spec.errors import CheckpointError
from s2a_edge.spec.manifest import Trainable

SLOTS: Mapping[str, tuple[str, ...]] = {"adamw": ("m", "v"), "sgd": ("m",)}
"""Optimizer -> roles of its state: first moment (or momentum) m, second moment v."""


class TrainingState:
    """Float32 tensors by role and trainable.

    Args:
        trainables: what the bundle trains; shapes as in the manifest.
        optimizer: ``"adamw"`` or ``"sgd"``: which state it keeps.
        provider: where the tensors are.
    """

    def __init__(
        self, trainables: Sequence[Trainable], optimizer: str, provider: Provider = "cpu"
    ) -> None:
        self.slots = SLOTS[optimizer]
        self.names = tuple(t.name for t in trainables)
        self._tensors = {
            f"{role}.{t.name}": DeviceTensor(tuple(t.shape), np.float32, provider)
            for role in ("param", "acc", *self.slots)
            for t in trainables
        }

    @property
    def size_bytes(self) -> int:
        """Bytes of all tensors: (2 + slots) x 4 bytes per trained number."""
        return sum(tensor.size_bytes for tensor in self._tensors.values())

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
        for tensor in self.inputs("acc").values():
            tensor.zero()

    def read(self, role: str) -> dict[str, Array]:
        """Copies of one role's tensors by trainable."""
        return {name: self._tensors[f"{role}.{name}"].read() for name in self.names}

    def snapshot(self) -> dict[str, Array]:
        """Copies of parameters and optimizer state, keyed ``param.NAME``, ``m.NAME``, ``v.NAME``.

        Accumulators are left out: a snapshot is taken between optimizer steps.
        """
        return {key: tensor.read() for key, tensor in self.inputs("param", *self.slots).items()}

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
        for key, tensor in own.items():
            tensor.write(values[key])
        self.zero_accumulators()

    def load_parameters(self, values: Mapping[str, Array], *, where: str) -> None:
        """Start anew from parameters: optimizer state and gradients become zero.

        Raises:
            CheckpointError: as :meth:`restore`.
        """
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
