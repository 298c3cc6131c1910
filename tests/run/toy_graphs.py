"""The graphs of a tiny MLP's training bundle, with gradients written by hand.

    x [n, D] -> frozen W1 [D, H] (external data) -> + hidden.bias [H] -> ReLU
             -> head.weight [C, H] -> + head.bias [C] -> logits [n, C]

Every loss of a bundle is here; of a graph's own loss (``output``) the toy is the mean over samples
of ``-log softmax(logits)[y]`` with y [n] an input.

They follow the same port names as packed graphs, so that the run side is tested without the
compiler. Only tests use this; the ``onnx`` package is available to them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx
from onnx import TensorProto, helper

from s2a_edge.spec.task_ports import Loss, loss_inputs

FROZEN = "backbone.weight"
TRAINABLES = ("head.bias", "head.weight", "hidden.bias")


@dataclass(frozen=True)
class ToySize:
    features: int = 6
    hidden: int = 5
    classes: int = 3

    def shape(self, name: str) -> tuple[int, ...]:
        return {
            FROZEN: (self.features, self.hidden),
            "hidden.bias": (self.hidden,),
            "head.weight": (self.classes, self.hidden),
            "head.bias": (self.classes,),
        }[name]


def train_graph(size: ToySize, batch: int, loss: Loss = "cross_entropy") -> onnx.ModelProto:
    nodes = [
        *_forward(),
        *_loss(loss, size, batch),
        _node("Transpose", ["dlogits"], "dlogits_t", perm=[1, 0]),
        _node("MatMul", ["dlogits_t", "hidden"], "grad.head.weight"),
        _node("ReduceSum", ["dlogits", "axis_0"], "grad.head.bias", keepdims=0),
        _node("MatMul", ["dlogits", "param.head.weight"], "dhidden"),
        _node("Greater", ["pre", "zero"], "mask"),
        _node("Cast", ["mask"], "mask_float", to=TensorProto.FLOAT),
        _node("Mul", ["dhidden", "mask_float"], "dpre"),
        _node("ReduceSum", ["dpre", "axis_0"], "grad.hidden.bias", keepdims=0),
        *(_node("Add", [f"acc.{t}", f"grad.{t}"], f"acc_out.{t}") for t in TRAINABLES),
    ]
    inputs = [
        *_data(size, batch, loss),
        *(_value(name, shape) for name, shape in loss_inputs(loss, batch, size.classes).items()),
        *_trainable_values("param", size),
        *_trainable_values("acc", size),
    ]
    logits = [] if loss == "output" else [_value("logits", (batch, size.classes))]
    outputs = [_value("loss", ()), *logits, *_trainable_values("acc_out", size)]
    return _model(f"train_b{batch}", nodes, inputs, outputs, [_external(size)])


def eval_graph(size: ToySize, batch: int, loss: Loss = "cross_entropy") -> onnx.ModelProto:
    inputs = [*_data(size, batch, loss), *_trainable_values("param", size)]
    if loss == "output":
        one = _node("Identity", ["own_loss"], "loss")
        nodes, outputs = [*_forward(), *_own_loss(size), one], [_value("loss", ())]
        return _model("eval", nodes, inputs, outputs, [_external(size)])
    outputs = [_value("logits", (batch, size.classes))]
    return _model("eval", _forward(), inputs, outputs, [_external(size)])


def _data(size: ToySize, batch: int, loss: Loss) -> list[onnx.ValueInfoProto]:
    own = [helper.make_tensor_value_info("y", TensorProto.INT64, [batch])]
    return [_value("x", (batch, size.features)), *(own if loss == "output" else [])]


def _loss(loss: Loss, size: ToySize, batch: int) -> list[onnx.NodeProto]:
    """Nodes from ``logits`` to ``loss`` and ``dlogits``."""
    if loss == "cross_entropy":
        return [
            _node("LogSoftmax", ["logits"], "log_p", axis=1),
            _node("Mul", ["target", "log_p"], "target_log_p"),
            _node("ReduceSum", ["target_log_p", "axis_1"], "row_log_p", keepdims=0),
            _node("Mul", ["row_log_p", "weight"], "weighted_log_p"),
            _node("ReduceSum", ["weighted_log_p", "axis_0"], "sum_log_p", keepdims=0),
            _node("Neg", ["sum_log_p"], "loss"),
            # d loss / d logits = weight * (softmax(logits) * sum(target) - target)
            _node("Softmax", ["logits"], "p", axis=1),
            _node("ReduceSum", ["target", "axis_1"], "mass", keepdims=1),
            _node("Mul", ["p", "mass"], "p_mass"),
            _node("Sub", ["p_mass", "target"], "p_minus_target"),
            _node("Unsqueeze", ["weight", "axis_1"], "weight_column"),
            _node("Mul", ["p_minus_target", "weight_column"], "dlogits"),
        ]
    if loss == "output":
        return [
            *_own_loss(size),
            _node("Mul", ["own_loss", "loss_scale"], "loss"),
            _node("Softmax", ["logits"], "p", axis=1),
            _node("Sub", ["p", "one_hot"], "p_minus_one_hot"),
            _node("Div", ["loss_scale", "rows"], "scale_of_row"),
            _node("Mul", ["p_minus_one_hot", "scale_of_row"], "dlogits"),
        ]
    terms = {
        "bce": [  # softplus(z) - z t
            _node("Softplus", ["logits"], "softplus"),
            _node("Mul", ["logits", "target"], "z_t"),
            _node("Sub", ["softplus", "z_t"], "terms"),
            _node("Sigmoid", ["logits"], "p"),
            _node("Sub", ["p", "target"], "slope"),
        ],
        "mse": [
            _node("Sub", ["logits", "target"], "error"),
            _node("Mul", ["error", "error"], "terms"),
            _node("Add", ["error", "error"], "slope"),
        ],
        "l1": [
            _node("Sub", ["logits", "target"], "error"),
            _node("Abs", ["error"], "terms"),
            _node("Sign", ["error"], "slope"),
        ],
    }[loss]
    return [
        *terms,
        _node("Mul", ["terms", "weight"], "weighted"),
        _node("ReduceSum", ["weighted"], "loss", keepdims=0),
        _node("Mul", ["slope", "weight"], "dlogits"),
    ]


def _own_loss(size: ToySize) -> list[onnx.NodeProto]:
    return [
        _node("OneHot", ["y", "depth", "off_on"], "one_hot", axis=1),
        _node("LogSoftmax", ["logits"], "log_p", axis=1),
        _node("Mul", ["one_hot", "log_p"], "own_terms"),
        _node("ReduceSum", ["own_terms"], "own_sum", keepdims=0),
        _node("Shape", ["y"], "rows_long"),
        _node("Cast", ["rows_long"], "rows_one", to=TensorProto.FLOAT),
        _node("Squeeze", ["rows_one"], "rows"),
        _node("Div", ["own_sum", "rows"], "own_mean"),
        _node("Neg", ["own_mean"], "own_loss"),
    ]


def infer_graph(size: ToySize) -> onnx.ModelProto:
    """A skeleton: its weights are neither inputs nor initializers until export appends them."""
    inputs = [_value("x", (1, size.features))]
    return _model("infer", _forward(), inputs, [_value("logits", (1, size.classes))], [])


def optimizer_graph(chunk: int, kind: str) -> onnx.ModelProto:
    slots = {"adamw": ("m", "v"), "sgd": ("m",)}[kind]
    scalars = {
        "adamw": ("beta1", "beta2", "eps", "correction1", "correction2"),
        "sgd": ("momentum",),
    }[kind]
    nodes = [
        _node("Mul", ["acc", "clip"], "g"),
        *{"adamw": _adamw, "sgd": _sgd}[kind](),
        # param_new = param - lr * (direction + weight_decay * param)
        _node("Mul", ["weight_decay", "param"], "decay"),
        _node("Add", ["direction", "decay"], "decayed"),
        _node("Mul", ["lr", "decayed"], "delta"),
        _node("Sub", ["param", "delta"], "param_new"),
        *(_node("Identity", [f"{role}_new"], f"{role}_out") for role in ("param", *slots)),
    ]
    inputs = [_value(role, (chunk,)) for role in ("param", "acc", *slots)]
    inputs += [_value(s, ()) for s in ("lr", "weight_decay", "clip", *scalars)]
    outputs = [_value(f"{role}_out", (chunk,)) for role in ("param", *slots)]
    return _model("optimizer", nodes, inputs, outputs, [])


def _adamw() -> list[onnx.NodeProto]:
    return [
        _node("Mul", ["beta1", "m"], "m_old"),
        _node("Sub", ["one", "beta1"], "one_minus_beta1"),
        _node("Mul", ["one_minus_beta1", "g"], "m_add"),
        _node("Add", ["m_old", "m_add"], "m_new"),
        _node("Mul", ["beta2", "v"], "v_old"),
        _node("Sub", ["one", "beta2"], "one_minus_beta2"),
        _node("Mul", ["g", "g"], "g2"),
        _node("Mul", ["one_minus_beta2", "g2"], "v_add"),
        _node("Add", ["v_old", "v_add"], "v_new"),
        _node("Div", ["m_new", "correction1"], "m_hat"),
        _node("Div", ["v_new", "correction2"], "v_hat"),
        _node("Sqrt", ["v_hat"], "v_root"),
        _node("Add", ["v_root", "eps"], "v_safe"),
        _node("Div", ["m_hat", "v_safe"], "direction"),
    ]


def _sgd() -> list[onnx.NodeProto]:
    return [
        _node("Mul", ["momentum", "m"], "m_old"),
        _node("Add", ["m_old", "g"], "m_new"),
        _node("Identity", ["m_new"], "direction"),
    ]


def _forward() -> list[onnx.NodeProto]:
    return [
        _node("MatMul", ["x", FROZEN], "projected"),
        _node("Add", ["projected", "param.hidden.bias"], "pre"),
        _node("Relu", ["pre"], "hidden"),
        _node("Gemm", ["hidden", "param.head.weight", "param.head.bias"], "logits", transB=1),
    ]


def _node(op: str, inputs: list[str], output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs, [output], name=f"toy/{output}", **attributes)


def _value(name: str, shape: tuple[int, ...]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))


def _trainable_values(prefix: str, size: ToySize) -> list[onnx.ValueInfoProto]:
    return [_value(f"{prefix}.{name}", size.shape(name)) for name in TRAINABLES]


def _external(size: ToySize) -> TensorProto:
    shape = size.shape(FROZEN)
    tensor = TensorProto(name=FROZEN, data_type=TensorProto.FLOAT, dims=shape)
    tensor.data_location = TensorProto.EXTERNAL
    place = {"location": "weights.bin", "offset": "0", "length": str(4 * shape[0] * shape[1])}
    for key, value in place.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def _model(
    name: str,
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    initializers: list[TensorProto],
) -> onnx.ModelProto:
    read = {value for node in nodes for value in node.input}
    constants = [
        helper.make_tensor("zero", TensorProto.FLOAT, [], [0.0]),
        helper.make_tensor("one", TensorProto.FLOAT, [], [1.0]),
        helper.make_tensor("tiny", TensorProto.FLOAT, [], [1e-6]),
        helper.make_tensor("axis_0", TensorProto.INT64, [1], [0]),
        helper.make_tensor("axis_1", TensorProto.INT64, [1], [1]),
        helper.make_tensor("depth", TensorProto.INT64, [], [ToySize.classes]),
        helper.make_tensor("off_on", TensorProto.FLOAT, [2], [0.0, 1.0]),
    ]
    used = [constant for constant in constants if constant.name in read]
    graph = helper.make_graph(nodes, name, inputs, outputs, [*initializers, *used])
    opset = helper.make_opsetid("", 21)
    return helper.make_model(graph, opset_imports=[opset], ir_version=10)
