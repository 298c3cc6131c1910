"""Making a frozen backbone tunable: which tensors train, and the head on top.

``bias``: every bias of an affine operator (convolution, linear, normalization) trains; where an
affine operator has none, a zero one is added, so that every channel can move (S2A, arXiv
2503.08154; BitFit, arXiv 2106.10199). ``head``: a linear classifier on the features, always.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from s2a_edge.pack.graph import MICROSOFT, GraphBuilder, dtype_of, module_of, shape_of
from s2a_edge.spec.errors import SourceError, UsageError

ADAPTERS = ("bias", "head")
PARAMETER_PREFIX = "param."
# The position of the bias among the inputs of operators that carry one.
_BIAS_INPUT = {"Gemm": 2, "Conv": 2, "ConvTranspose": 2, "LayerNormalization": 2,
               "BatchNormalization": 2, "GroupNormalization": 2}
_NORMS = ("LayerNormalization", "BatchNormalization", "GroupNormalization")
# Names of the training step's own inputs and outputs.
_RESERVED = frozenset({"loss", "logits", "target", "weight"})
_RESERVED_PREFIXES = (PARAMETER_PREFIX, "acc.")


@dataclass(frozen=True)
class Trainable:
    """A tensor that trains.

    Attributes:
        name: as a PyTorch user knows it.
        value: the graph input ``param.<name>``.
        initial: float32 start value.
        kind: ``bias``, ``norm_bias``, ``head_weight`` or ``head_bias``.
        module: the module it belongs to.
        decay: whether weight decay applies (not to biases).
    """

    name: str
    value: ir.Value
    initial: np.ndarray
    kind: str
    module: str
    decay: bool


@dataclass(frozen=True)
class Adapted:
    """A backbone with a head, whose trainables are graph inputs.

    Attributes:
        nodes: forward nodes in execution order, all values static.
        data_inputs: the backbone's inputs.
        logits: [N, classes] float32.
        trainables: what trains, in order of first use.
        names: every value and node name in use.
    """

    nodes: tuple[ir.Node, ...]
    data_inputs: tuple[ir.Value, ...]
    logits: ir.Value
    trainables: tuple[Trainable, ...]
    names: frozenset[str]


def adapt(model: ir.Model, data_inputs: tuple[ir.Value, ...], features: ir.Value, *,
          classes: int, adapters: tuple[str, ...], seed: int) -> Adapted:
    """Adds the head and turns the recipe's tensors into trainables.

    Args:
        model: a normalized backbone.
        data_inputs: its inputs.
        features: [N, D], what the head sits on.
        classes: number of outputs of the head.
        adapters: names out of :data:`ADAPTERS`; the head is implied.
        seed: of the head's start values.

    Raises:
        UsageError: for an unknown adapter.
        SourceError: if an input has a name that the training step needs for itself.
    """
    unknown = [a for a in adapters if a not in ADAPTERS]
    if unknown:
        raise UsageError(where="--adapters", expected=f"names out of {', '.join(ADAPTERS)}",
                         got=", ".join(unknown), todo="leave the unknown ones out")
    for value in data_inputs:
        if value.name in _RESERVED or (value.name or "").startswith(_RESERVED_PREFIXES):
            raise SourceError(where=f"input {value.name}", expected="a name of its own",
                              got="one that the training step uses",
                              todo="rename the input in the exported model")
    build = _Adapter(model, data_inputs, tune_biases="bias" in adapters)
    for node in model.graph:
        build.add(node)
    logits = build.head(build.env[features], classes, seed)
    return Adapted(tuple(build.g.nodes), tuple(build.env[v] for v in data_inputs), logits,
                   tuple(build.trainables), frozenset(build.g.taken))


class _Adapter:
    """Copies a backbone node by node, exchanging frozen biases for trainables."""

    def __init__(self, model: ir.Model, data_inputs: tuple[ir.Value, ...], *,
                 tune_biases: bool) -> None:
        names = {*_RESERVED, *(v.name for v in model.graph.initializers.values() if v.name)}
        for node in model.graph:
            names.update(v.name for v in node.outputs if v.name)
        self.g = GraphBuilder(taken=names)
        self.env: dict[ir.Value, ir.Value] = {
            v: self.g.input(v.name or "input", dtype_of(v), shape_of(v)) for v in data_inputs}
        self.trainables: list[Trainable] = []
        self._tune = tune_biases
        self._bias_adds: dict[ir.Node, int] = {}

    def add(self, node: ir.Node) -> None:
        inputs: list[ir.Value | None] = [self._lookup(v) for v in node.inputs]
        added: Trainable | None = None
        if self._tune:
            position = _bias_position(node)
            if position is not None:
                inputs += [None] * (position + 1 - len(inputs))
            if node in self._bias_adds:
                index = self._bias_adds[node]
                inputs[index] = self._bias(node, inputs[index]).value
            elif position is not None and (inputs[position] is not None
                                           or not self._bias_behind(node)):
                inputs[position] = self._bias(node, inputs[position]).value
            elif position is None and _is_affine(node) and not self._bias_behind(node):
                added = self._bias(node, None)
        copy = ir.Node(node.domain, node.op_type, inputs, list(node.attributes.values()),
                       num_outputs=len(node.outputs), name=node.name,
                       metadata_props=dict(node.metadata_props))
        for old, new in zip(node.outputs, copy.outputs, strict=True):
            new.name = self._free(old.name)
            new.shape, new.type = old.shape, old.type
            self.env[old] = new
        self.g.adopt(copy)
        if added is not None:
            old = node.outputs[0]
            self.g.module = added.module
            self.env[old] = self.g.op("Add", copy.outputs[0], added.value)

    def _lookup(self, value: ir.Value | None) -> ir.Value | None:
        if value is None:
            return None
        if value not in self.env and value.name in _RESERVED:
            self.env[value] = ir.Value(name=self._free(value.name), type=value.type,
                                       shape=value.shape, const_value=value.const_value)
        return self.env.get(value, value)

    def _free(self, name: str | None) -> str | None:
        return self.g.unique(f"{name}_frozen") if name in _RESERVED else name

    def _bias_behind(self, node: ir.Node) -> bool:
        """Whether the only reader of ``node`` adds a frozen vector; remembers that reader."""
        uses = list(node.outputs[0].uses())
        if not _is_linear(node) or len(uses) != 1 or uses[0].node.op_type != "Add":
            return False
        other = 1 - uses[0].idx
        bias = uses[0].node.inputs[other]
        if (bias is None or bias.const_value is None
                or not _is_channel_vector(shape_of(bias), shape_of(node.outputs[0])[-1])):
            return False
        self._bias_adds[uses[0].node] = other
        return True

    def _bias(self, node: ir.Node, frozen: ir.Value | None) -> Trainable:
        module = module_of(node)
        if frozen is not None and frozen.const_value is not None:
            name, array = frozen.name or f"{module}.bias", frozen.const_value.numpy()
        else:
            name, array = f"{module}.bias", np.zeros(_bias_width(node), np.float32)
        kind = "norm_bias" if node.op_type in _NORMS else "bias"
        return self._train(name, np.array(array, np.float32), kind, module)

    def _train(self, name: str, initial: np.ndarray, kind: str, module: str) -> Trainable:
        used = {t.name for t in self.trainables}
        base, number = name, 1
        while name in used:
            number += 1
            name = f"{base}_{number}"
        value = self.g.input(PARAMETER_PREFIX + name, ir.DataType.FLOAT, initial.shape)
        trainable = Trainable(name, value, initial, kind, module, decay=kind == "head_weight")
        self.trainables.append(trainable)
        return trainable

    def head(self, features: ir.Value, classes: int, seed: int) -> ir.Value:
        """A linear layer from [N, D] to [N, classes], drawn N(0, 0.02²), zero bias."""
        width = shape_of(features)[-1]
        weight = np.random.default_rng(seed).normal(0.0, 0.02, (classes, width))
        w = self._train("head.weight", weight.astype(np.float32), "head_weight", "head")
        b = self._train("head.bias", np.zeros(classes, np.float32), "head_bias", "head")
        self.g.module = "head"
        logits = self.g.op("Gemm", features, w.value, b.value, name="logits", transB=1)
        logits.name = "logits"
        return logits


def _bias_position(node: ir.Node) -> int | None:
    """The operand that is the bias of an affine operator, there or not; None: it has no place.

    What a Gemm adds may be anything: a residual, a scalar. Then the bias comes behind it.
    """
    position = _BIAS_INPUT.get(node.op_type) if node.domain == "" else None
    if position is None:
        return None
    present = node.inputs[position] if position < len(node.inputs) else None
    if node.op_type == "Gemm":
        if not _is_linear(node) or (present is None
                                    and node.attributes.get_float("beta", 1.0) != 1.0):
            return None
        if present is not None and not _is_channel_vector(shape_of(present),
                                                          shape_of(node.outputs[0])[-1]):
            return None
    return None if present is not None and present.const_value is None else position


def _is_affine(node: ir.Node) -> bool:
    """Whether a bias can be added behind ``node``, along its last axes."""
    return _is_linear(node) or (node.domain, node.op_type) == ("", "LayerNormalization")


def _is_linear(node: ir.Node) -> bool:
    """A product of an activation with a frozen matrix."""
    if (node.domain, node.op_type) not in (("", "MatMul"), ("", "Gemm"),
                                           (MICROSOFT, "FusedMatMul")):
        return False
    a, w = node.inputs[0], node.inputs[1]
    return (a is not None and a.const_value is None and w is not None
            and w.const_value is not None and len(shape_of(w)) == 2)


def _is_channel_vector(shape: tuple[int, ...], channels: int) -> bool:
    return bool(shape) and shape[-1] == channels and all(d == 1 for d in shape[:-1])


def _bias_width(node: ir.Node) -> tuple[int, ...]:
    shape = shape_of(node.outputs[0])
    if node.op_type in ("Conv", "ConvTranspose", "BatchNormalization", "GroupNormalization"):
        return (shape[1],)
    if node.op_type == "LayerNormalization":
        axis = node.attributes.get_int("axis", -1)
        return shape[axis:]
    return (shape[-1],)
