"""Parts of a training step as runnable graphs of their own.

A part has chosen values as inputs and chosen values as outputs, and the nodes between them in the
step's order. All parts share the step's ``weights.bin``, which the runtime maps.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx import helper

from s2a_edge.pack.emit import WEIGHTS_NAME, emit_model, emit_weights
from s2a_edge.pack.graph import dtype_of, shape_of

Values = Mapping[str, ort.OrtValue]


@dataclass(frozen=True)
class Part:
    """A runnable part of a graph.

    Attributes:
        inputs: names of its inputs; all must be given, others may be.
        outputs: names of its outputs.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    session: Any = field(repr=False)

    def run(self, values: Values) -> dict[str, ort.OrtValue]:
        """The outputs by name."""
        made = self.session.run_with_ort_values(
            list(self.outputs), {name: values[name] for name in self.inputs})
        return dict(zip(self.outputs, made, strict=True))


class Parts:
    """Makes parts of one model.

    Args:
        model: the whole; it is written below ``folder``.
        folder: an empty folder for files; parts need it as long as they live.
        threads: of one operator.
        wholes: models that hold the weights of which ``model`` has slices.
    """

    def __init__(self, model: ir.Model, folder: Path, threads: int,
                 wholes: Sequence[ir.Model] = ()) -> None:
        weights = {e.name: e for e in emit_weights((model, *wholes), folder / WEIGHTS_NAME)}
        path = folder / "whole.onnx"
        emit_model(model, weights, path)
        self._proto = onnx.load(path, load_external_data=False)
        path.unlink()
        self._folder = folder
        self._threads = threads
        self._count = 0
        self._types = {v.name: helper.make_tensor_value_info(
            v.name or "", int(dtype_of(v)), list(shape_of(v)))
            for v in (*model.graph.inputs, *(o for n in model.graph for o in n.outputs)) if v.name}
        self.nodes = tuple(self._proto.graph.node)
        self._made_at = {name: at for at, node in enumerate(self.nodes) for name in node.output}
        self._initializers = {t.name: t for t in self._proto.graph.initializer}

    def first_use(self, names: Iterable[str]) -> int:
        """Position of the first node that reads one of ``names``."""
        wanted = set(names)
        return next(at for at, node in enumerate(self.nodes) if wanted.intersection(node.input))

    def part(self, outputs: Sequence[str], *, start: int = 0, given: Iterable[str] = ()) -> Part:
        """The part that computes ``outputs`` from ``given`` and from what is there at ``start``.

        Args:
            outputs: names of values that are made at or after ``start``.
            start: what earlier nodes have made is taken as input.
            given: values that are taken as inputs although a later node makes them.
        """
        used, inputs = self._walk(outputs, start, set(given))
        constants = [self._initializers[n] for n in sorted(inputs) if n in self._initializers]
        names = tuple(sorted(inputs - set(self._initializers)))
        graph = helper.make_graph(
            used[::-1], "part", [self._types[n] for n in names],
            [self._types[n] for n in outputs], initializer=constants)
        return Part(names, tuple(outputs), self._session(graph))

    def reach(self, outputs: Sequence[str], given: Iterable[str]) -> set[str]:
        """The inputs of the part that computes ``outputs``."""
        return self._walk(outputs, 0, set(given))[1]

    def is_made(self, name: str) -> bool:
        """Whether a node makes ``name``."""
        return name in self._made_at

    def factor(self, name: str) -> str | None:
        """The other operand where ``name`` is read once, by a product."""
        readers = [node for node in self.nodes if name in node.input]
        if len(readers) != 1 or readers[0].op_type != "Mul":
            return None
        return next((other for other in readers[0].input if other != name), None)

    def made_from(self, names: Iterable[str], start: int) -> list[str]:
        """Those of ``names`` that are made at or after ``start``."""
        return [name for name in names if self._made_at[name] >= start]

    def _walk(self, outputs: Sequence[str], start: int, cut: set[str],
              ) -> tuple[list[onnx.NodeProto], set[str]]:
        """The nodes that ``outputs`` need, last to first, and what enters them."""
        wanted, used, inputs = set(outputs), [], set[str]()
        for at in range(len(self.nodes) - 1, start - 1, -1):
            node = self.nodes[at]
            if wanted.intersection(node.output):
                used.append(node)
                for name in filter(None, node.input):
                    if name in cut or self._made_at.get(name, -1) < start:
                        inputs.add(name)
                    else:
                        wanted.add(name)
        return used, inputs

    def _session(self, graph: onnx.GraphProto) -> Any:
        model = helper.make_model(graph, opset_imports=self._proto.opset_import,
                                  ir_version=self._proto.ir_version)
        path = self._folder / f"part{self._count}.onnx"
        self._count += 1
        path.write_bytes(model.SerializeToString())
        session = open_session(str(path), self._threads)
        path.unlink()
        return session


def open_session(model: str | bytes, threads: int) -> Any:
    """A session that runs nodes in file order, as the board does, but without its arena limit."""
    options = ort.SessionOptions()
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.enable_mem_reuse = False
    options.enable_mem_pattern = False
    # Memory goes back at once: parts of very different sizes run in turn.
    options.enable_cpu_mem_arena = False
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
