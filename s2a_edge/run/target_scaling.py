"""Standardisation of regressed numbers: the graph learns ``(y - mean) / std`` of each output.

A head learns well when its targets have mean 0 and deviation 1, whatever their units. Mean and
deviation are those of the training data; they are kept in the run (its settings and checkpoints),
undone in evaluation, and folded into the head on export.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt

from s2a_edge.spec.errors import BundleError
from s2a_edge.spec.manifest import MAX_ENTRIES, Manifest
from s2a_edge.spec.strict_json import Length

Array = npt.NDArray[Any]
F32 = npt.NDArray[np.float32]
Numbers = Annotated[tuple[float, ...], Length(0, MAX_ENTRIES)]


@dataclass(frozen=True)
class TargetScaling:
    """Mean and standard deviation of every output, in the targets' units."""

    mean: Numbers
    std: Numbers

    @classmethod
    def identity(cls, outputs: int) -> TargetScaling:
        """Leaves numbers as they are."""
        return cls((0.0,) * outputs, (1.0,) * outputs)

    @classmethod
    def of(cls, targets: Array) -> TargetScaling:
        """Of training targets [N, C], in float64; a constant output keeps its scale."""
        values = targets.astype(np.float64)
        std = values.std(axis=0)
        std[std <= 1e-12 * np.abs(values).max(axis=0, initial=0.0)] = 1.0
        std[std == 0] = 1.0
        return cls(tuple(values.mean(axis=0).tolist()), tuple(std.tolist()))

    def apply(self, targets: Array) -> F32:
        """Numbers [n, C] as the graph is to predict them."""
        return ((targets.astype(np.float64) - self.mean) / self.std).astype(np.float32)

    def undo(self, logits: Array) -> npt.NDArray[np.float64]:
        """Predictions [n, C] in the targets' own units, float64."""
        undone: npt.NDArray[np.float64] = logits.astype(np.float64) * self.std + self.mean
        return undone

    def folded(self, parameters: Mapping[str, Array], manifest: Manifest) -> dict[str, Array]:
        """Parameters of a model that predicts in the targets' own units.

        The head is linear: ``std (W x + b) + mean`` has weight ``std W`` and bias
        ``std b + mean``.

        Args:
            parameters: by trainable, of a model that predicts standardised numbers.
            manifest: says which of them are the head.

        Raises:
            BundleError: the head is not one row of weights and one bias for each output.
        """
        std, mean = np.array(self.std), np.array(self.mean)
        return _with_head(parameters, manifest, std, mean)

    def replaced(
        self, new: TargetScaling, parameters: Mapping[str, Array], manifest: Manifest
    ) -> dict[str, Array]:
        """The same model, whose parameters follow this scaling, as ``new`` has them.

        A run that begins with the values of another one predicts as that one did, though mean and
        deviation of its data differ.

        Args:
            new: the scaling of the run to come.
            parameters: by trainable.
            manifest: says which of them are the head.

        Raises:
            BundleError: as :meth:`folded`.
        """
        std, shift = np.array(self.std), np.array(self.mean) - np.array(new.mean)
        return _with_head(parameters, manifest, std / np.array(new.std), shift / np.array(new.std))


def _with_head(
    parameters: Mapping[str, Array], manifest: Manifest, factor: Array, offset: Array
) -> dict[str, Array]:
    """``parameters`` with a head that gives ``factor`` times what it gave, plus ``offset``."""
    changed = dict(parameters)
    kinds = {"head_weight": "weight", "head_bias": "bias"}
    found = {kinds[t.kind]: t for t in manifest.trainables if t.kind in kinds}
    shapes = {part: tuple(t.shape) for part, t in found.items()}
    outputs = (manifest.task.classes,)
    if shapes.get("bias") != outputs or shapes.get("weight", ())[:1] != outputs:
        raise BundleError(
            where="manifest.json: trainables",
            expected=f"a head of {outputs[0]} rows and as many biases",
            got=str(shapes),
            todo="pack the bundle again",
        )
    weight, bias = found["weight"].name, found["bias"].name
    changed[weight] = (parameters[weight] * factor[:, None]).astype(np.float32)
    changed[bias] = (parameters[bias] * factor + offset).astype(np.float32)
    return changed
