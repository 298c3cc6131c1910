"""Our graphs in the form that onnxruntime's On-Device Training API expects.

Its ``Module`` (1.19, ``orttraining/training_api/module.cc``) knows a graph's ports by their names:
inputs that the checkpoint has are parameters; ``<parameter>_grad.accumulation.buffer`` are gradient
buffers, which it makes itself; ``lazy_reset_grad`` says that the buffers begin anew; what is left
are the user's inputs, in their order. Outputs ``<parameter>_grad.accumulation.out`` it keeps to
itself. An ``InPlaceAccumulatorV2`` node adds to a buffer, where our step gives the sum back.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx
import onnx_ir as ir
from onnx import helper

from s2a_edge.pack.adapt import PARAMETER_PREFIX, Trainable
from s2a_edge.pack.builder import GraphBuilder
from s2a_edge.pack.differentiate import ACCUMULATED_PREFIX, ACCUMULATOR_PREFIX
from s2a_edge.pack.graph import IR_VERSION, MICROSOFT, OPSET, leading_to, shape_of
from s2a_edge.pack.loss import attach_loss
from s2a_edge.spec.task_ports import Loss

RESET = "lazy_reset_grad"
GRADIENT, BUFFER, UPDATED = "_grad", "_grad.accumulation.buffer", "_grad.accumulation.out"
# Those of our own optimizer graph's defaults (run.hyperparameters): the API takes the rate alone.
ADAMW: dict[str, float] = {"alpha": 0.9, "beta": 0.999, "epsilon": 1e-8, "weight_decay": 0.0,
                           "adam_mode": 0, "correct_bias": 1}


def parameter_name(trainable: Trainable) -> str:
    """The name of a trainable in the graphs and in the checkpoint."""
    return PARAMETER_PREFIX + trainable.name


def training_model(step: ir.Model, trainables: Sequence[Trainable]) -> ir.Model:
    """A training step with the API's ports.

    Args:
        step: as ``differentiate`` makes it, scheduled; left as it is.
        trainables: all of its ``param.*``.

    Returns:
        Inputs: data; what the loss takes; ``param.*``; a buffer for each; ``lazy_reset_grad`` bool
        [1]. Outputs: ``loss`` []; ``logits`` [N, C] unless the graph is its own loss; bool [1] for
        each parameter.
    """
    model = step.clone()
    graph = model.graph
    inputs = {v.name: v for v in graph.inputs}
    outputs = {v.name: v for v in graph.outputs}
    reset = ir.Value(name=RESET, type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([1]))
    updated = []
    for trainable in trainables:
        before = inputs[ACCUMULATOR_PREFIX + trainable.name]
        total = outputs[ACCUMULATED_PREFIX + trainable.name]
        add = total.producer()
        assert add is not None and add.op_type == "Add", f"{total.name} is no sum"
        gradient = next(v for v in add.inputs if v is not before)
        name = parameter_name(trainable)
        before.name = name + BUFFER
        node = ir.Node(MICROSOFT, "InPlaceAccumulatorV2", [before, gradient, reset], num_outputs=1,
                       name=f"accumulate_{name}", metadata_props=dict(add.metadata_props))
        done = node.outputs[0]
        done.name, done.dtype, done.shape = name + UPDATED, ir.DataType.BOOL, ir.Shape([1])
        graph.insert_after(add, node)
        updated.append(done)
    seen = [v for v in graph.outputs if not (v.name or "").startswith(ACCUMULATED_PREFIX)]
    adds = [outputs[ACCUMULATED_PREFIX + t.name].producer() for t in trainables]
    graph.outputs.clear()
    graph.outputs.extend([*seen, *updated])
    graph.remove([add for add in adds if add is not None], safe=True)
    graph.inputs.append(reset)
    return model


def eval_model(evaluation: ir.Model, loss: Loss) -> ir.Model:
    """The evaluation graph with the loss of the task.

    Args:
        evaluation: as the bundle has it; left as it is. Its loss, if it is its own, comes unscaled.
        loss: of the task.

    Returns:
        Inputs: data; what the loss takes; ``param.*``. Outputs: ``loss`` [], ``logits`` [N, C].
    """
    model = evaluation.clone()
    graph = model.graph
    if loss == "output":
        return model
    names = {v.name for node in graph for v in node.outputs} | {node.name for node in graph}
    names |= {v.name for v in graph.inputs} | set(graph.initializers)
    g = GraphBuilder(taken=[name for name in names if name])
    g.module = "loss"
    taken, total, _ = attach_loss(g, loss, graph.outputs[0])
    needed = leading_to(g.nodes, [total])
    read = {v for node in needed for v in node.inputs}
    graph.extend([node for node in g.nodes if node in needed])
    for name, value in g.initializers.items():
        if value in read:
            graph.initializers[name] = value
    graph.outputs.insert(0, total)
    data = [v for v in graph.inputs if not (v.name or "").startswith(PARAMETER_PREFIX)]
    parameters = [v for v in graph.inputs if v not in data]
    graph.inputs.clear()
    graph.inputs.extend([*data, *taken, *parameters])
    return model


def optimizer_model(kind: str) -> onnx.ModelProto:
    """The update of all parameters at once: AdamW, or SGD without momentum.

    ``AdamWOptimizer`` in its mode 0 is what our own optimizer graph computes, for
    ``weight_decay`` 0: the API has one value for all parameters, and biases do not decay. Of SGD it
    has the plain form alone.
    """
    scalar = [helper.make_tensor_value_info("learning_rate", onnx.TensorProto.FLOAT, [1]),
              helper.make_tensor_value_info("step", onnx.TensorProto.INT64, [1])]
    names = ["params", "gradients", "first_order_moments"]
    if kind == "adamw":
        names.append("second_order_moments")
        node = helper.make_node("AdamWOptimizer", ["learning_rate", "step", *names], ["updated"],
                                name="AdamW", domain=MICROSOFT)
        node.attribute.extend(helper.make_attribute(*item) for item in ADAMW.items())
    else:
        node = helper.make_node("SGDOptimizerV2", ["learning_rate", *names[:2]], ["updated"],
                                name="SGD", domain=MICROSOFT)
    sequences = [helper.make_tensor_sequence_value_info(n, onnx.TensorProto.FLOAT, None)
                 for n in names]
    done = helper.make_tensor_value_info("updated", onnx.TensorProto.BOOL, [1])
    graph = helper.make_graph([node], "optimizer", [*scalar, *sequences], [done])
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION,
                             producer_name="s2a-edge")


def ports(model: ir.Model) -> dict[str, list[int]]:
    """What a user feeds a training or evaluation graph, in order, with shapes."""
    own = (PARAMETER_PREFIX,)
    return {v.name or "": list(shape_of(v)) for v in model.graph.inputs
            if not (v.name or "").startswith(own) and v.name != RESET}


__all__ = ["BUFFER", "RESET", "UPDATED", "eval_model", "optimizer_model", "parameter_name", "ports",
           "training_model"]
