"""The training step in PyTorch, for any module: gradients by torch.autograd.

A trainable bias has the gradient of a vector that is added to the output of its layer. Layers are
found as they are called (``torch.nn.functional``), so that one counts that is no module of its
own. A BatchNorm that directly follows a layer is folded into it by the compiler: there the vector
is added behind the BatchNorm.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  # the name everyone knows
from torch import nn
from torch.overrides import TorchFunctionMode

from s2a_edge.pack.adapt import Trainable

Arrays = Mapping[str, np.ndarray]
Features = Callable[[nn.Module, dict[str, torch.Tensor]], torch.Tensor]

_CONVOLUTIONS = (torch.conv1d, torch.conv2d, torch.conv_transpose2d)
_CHANNELS_FIRST = (*_CONVOLUTIONS, F.batch_norm, F.group_norm, F.instance_norm)
_LAYERS = (*_CHANNELS_FIRST, F.linear, F.layer_norm, F.rms_norm, torch.addmm)
_PRODUCTS = (torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__)


class OracleError(Exception):
    """Trainables and the module's layers do not correspond."""


@dataclass
class _Call:
    """One call of a layer, in the order of the forward.

    Attributes:
        module: the module that called it.
        function: its name.
        live: whether data flows through it to the features (not so where a weight is normalized).
        channels_first: whether channels are axis 1, else the last.
        norm: the call of the BatchNorm that is folded into it.
        folded: whether it is such a BatchNorm.
        output: what it made, while layers are being recorded.
        channels: of its output.
        offset: what is added to its output.
    """

    module: str
    function: str
    live: bool
    channels_first: bool
    norm: _Call | None = None
    folded: bool = False
    output: torch.Tensor | None = None
    channels: int = 0
    offset: torch.Tensor | None = None


class _Watch(TorchFunctionMode):
    """Sees every call of a layer: records it, or adds the offset that was recorded for it."""

    def __init__(self, calls: list[_Call] | None = None) -> None:
        super().__init__()
        self.known = calls
        self.calls: list[_Call] = []
        self.path: list[str] = []
        self.made: dict[int, _Call] = {}  # by the ids of tensors that they keep alive

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.multi_head_attention_forward:
            with self:  # the layers inside it count
                return _multi_head_attention(*args, **(kwargs or {}))
        y = func(*args, **(kwargs or {}))
        if func is F.embedding and self.known is None:
            return y.detach().requires_grad_()  # where the data of a text begins to flow
        if not (func in _LAYERS or (func in _PRODUCTS and _is_matrix(args[1]))):
            return y
        if self.known is None:
            self._record(func, args[1] if func is torch.addmm else args[0], y)
            return y
        call = self.known[len(self.calls)]
        self.calls.append(call)
        if call.offset is None:
            return y
        lift = (1,) * (y.ndim - 2) if call.channels_first else ()
        return y + call.offset.reshape(*call.offset.shape, *lift)

    def _record(self, func: Any, x: torch.Tensor, y: torch.Tensor) -> None:
        call = _Call(self.path[-1], func.__name__, x.requires_grad, func in _CHANNELS_FIRST)
        call.channels = y.shape[1 if call.channels_first else -1]
        before = self.made.get(id(x))
        if func is F.batch_norm and before is not None:
            before.norm, call.folded = call, True
        elif func in _CONVOLUTIONS or func is F.linear:
            self.made[id(y)] = call
        call.output = y
        self.calls.append(call)

    def follow(self, module: nn.Module) -> list[Any]:
        """Hooks that keep track of which module is at work."""
        handles = []
        for name, part in module.named_modules():
            handles.append(part.register_forward_pre_hook(
                lambda *_, name=name: self.path.append(name)))
            handles.append(part.register_forward_hook(self._leave))
        return handles

    def _leave(self, *_: object) -> None:
        self.path.pop()


def _multi_head_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, width: int,
                          heads: int, in_weight: torch.Tensor, in_bias: torch.Tensor | None,
                          *more: Any, **_: Any) -> tuple[torch.Tensor, None]:
    """``nn.MultiheadAttention`` [T, N, D] in evaluation mode, layer by layer."""
    out_weight, out_bias = more[4:6]  # behind bias_k, bias_v, add_zero_attn and dropout_p
    if query is key:
        q, k, v = F.linear(query, in_weight, in_bias).chunk(3, -1)
    else:  # two layers, as in torch
        weights = in_weight.split([width, 2 * width])
        biases = (None, None) if in_bias is None else in_bias.split([width, 2 * width])
        q = F.linear(query, weights[0], biases[0])
        k, v = F.linear(key, weights[1], biases[1]).chunk(2, -1)
    q, k, v = (t.reshape(t.shape[0], t.shape[1] * heads, -1).transpose(0, 1) for t in (q, k, v))
    scores = q @ k.transpose(1, 2) * q.shape[-1] ** -0.5
    mixed = (scores.softmax(-1) @ v).transpose(0, 1).reshape(query.shape)
    return F.linear(mixed, out_weight, out_bias), None


def _readers(result: torch.Tensor) -> dict[Any, int]:
    """How often the output of each node of autograd's graph is read on the way to ``result``."""
    found: dict[Any, int] = {}
    waiting, seen = [result.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        for earlier, _ in node.next_functions:
            found[earlier] = found.get(earlier, 0) + 1
            waiting.append(earlier)
    return found


def _is_matrix(value: Any) -> bool:
    return isinstance(value, nn.Parameter) and value.ndim == 2


class Oracle:
    """A frozen module with an offset per trainable, and a head.

    Args:
        module: the backbone, in evaluation mode.
        features: of the module and its inputs, [N, D].
        trainables: of the compiled step.
        feeds: inputs by name.
        double: compute in float64.

    Raises:
        OracleError: if a trainable has no layer.
    """

    def __init__(self, module: nn.Module, features: Features, trainables: Iterable[Trainable],
                 feeds: Arrays, *, double: bool = False) -> None:
        self.dtype = torch.float64 if double else torch.float32
        self.module = copy.deepcopy(module).to(self.dtype)
        self.features = features
        self.feeds = feeds
        self.calls = self._discover()
        self.offsets: dict[str, nn.Parameter] = {}
        self._place(list(trainables))

    @property
    def untrained(self) -> list[str]:
        """Layers without a trainable."""
        return [f"{c.function} {c.module}" for c in self.calls
                if c.live and not c.folded and (c.norm or c).offset is None]

    def gradients(self, target: np.ndarray, weight: np.ndarray) -> dict[str, np.ndarray]:
        """Of ``sum_i weight_i * -sum_c target_ic log softmax(logits)_ic``, by trainable."""
        with _Watch(self.calls):
            features = self.features(self.module, self._inputs())
        logits = F.linear(features, self.offsets["head.weight"], self.offsets["head.bias"])
        per_sample = (torch.tensor(target, dtype=self.dtype) * logits.log_softmax(-1)).sum(-1)
        loss = -(torch.tensor(weight, dtype=self.dtype) * per_sample).sum()
        made = torch.autograd.grad(loss, list(self.offsets.values()), allow_unused=True)
        return {name: np.zeros(tuple(offset.shape)) if g is None else g.numpy()
                for (name, offset), g in zip(self.offsets.items(), made, strict=True)}

    def _inputs(self, *, requires_grad: bool = False) -> dict[str, torch.Tensor]:
        tensors = {name: torch.tensor(array) for name, array in self.feeds.items()}
        return {name: t.to(self.dtype).requires_grad_(requires_grad) if t.is_floating_point() else t
                for name, t in tensors.items()}

    def _discover(self) -> list[_Call]:
        watch = _Watch()
        handles = watch.follow(self.module)
        with watch:
            features = self.features(self.module, self._inputs(requires_grad=True))
        for handle in handles:
            handle.remove()
        readers = _readers(features)
        for call in watch.calls:
            node = None if call.output is None else call.output.grad_fn
            call.live = call.live and (node in readers or node is features.grad_fn)
            if call.norm is not None and readers.get(node, 0) > 1:  # a norm that cannot be folded
                call.norm.folded, call.norm = False, None
            call.output = None
        return watch.calls

    def _place(self, trainables: list[Trainable]) -> None:
        # Layers that read parameters alone (queries of a pooling) come last.
        by_module: dict[str, list[_Call]] = {}
        for call in sorted(self.calls, key=lambda c: not c.live):
            if not call.folded:
                by_module.setdefault(call.module, []).append(call)
        for t in trainables:
            offset = nn.Parameter(torch.tensor(t.initial, dtype=self.dtype))
            self.offsets[t.name] = offset
            if t.kind.startswith("head"):
                continue
            calls = by_module.get(t.module)
            if not calls:
                raise OracleError(f"{t.name} {list(t.initial.shape)} belongs to {t.module}, where "
                                  "PyTorch calls no (other) layer")
            with torch.no_grad():
                offset.zero_()
            # Several layers of one module are told apart by their width, then by their order.
            fitting = [c for c in calls if c.channels == t.initial.shape[-1]] or calls
            call = fitting[0]
            calls.remove(call)
            (call.norm or call).offset = offset
