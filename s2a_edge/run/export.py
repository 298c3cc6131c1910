"""A plain inference ONNX model with the tuned values merged, written without the onnx package."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from s2a_edge.run.device_tensor import Array
from s2a_edge.run.target_scaling import TargetScaling
from s2a_edge.spec.bundle import Bundle
from s2a_edge.spec.errors import CheckpointError
from s2a_edge.spec.frozen_weights import decode_weight, decoded_shapes
from s2a_edge.spec.manifest import Manifest
from s2a_edge.spec.onnx_export import NamedTensor, export_model


def describe_output(manifest: Manifest) -> str:
    """In words what the output of an exported model is."""
    count = manifest.task.classes
    outputs = manifest.graphs.infer.outputs or ()
    return {
        "cross_entropy": f"logits [1, {count}], one score a class; softmax gives probabilities",
        "bce": f"logits [1, {count}], one score a label; sigmoid gives probabilities",
        "output": ", ".join(f"{x.name} {list(x.shape)}" for x in outputs),
    }.get(manifest.task.loss, f"logits [1, {count}], the predictions in the targets' own units")


def export(
    bundle: Bundle,
    parameters: Mapping[str, Array],
    out: Path,
    scaling: TargetScaling | None = None,
) -> Path:
    """Write the tuned model; frozen weights are streamed from the bundle, never all in memory.
    Those that it keeps as codes are decoded one at a time: the model holds float32.

    What it gives out is ``logits``: scores before softmax or sigmoid; of regressed numbers the
    predictions in their own units, since ``scaling`` is folded into the head.

    Args:
        bundle: what was trained.
        parameters: tuned values by trainable, float32.
        out: the ONNX file to create or replace.
        scaling: of regressed numbers; None: they were learned as they are.

    Returns:
        ``out``.

    Raises:
        CheckpointError: the parameters are not those of the bundle.
        SourceError: the model would pass protobuf's 2 GiB.
        StorageError: no space, no permission.
    """
    manifest = bundle.manifest
    expected = {t.name: tuple(t.shape) for t in manifest.trainables}
    got = {name: values.shape for name, values in parameters.items()}
    if expected != got:
        differing = sorted(n for n in expected.keys() | got.keys() if expected.get(n) != got.get(n))
        raise CheckpointError(
            where="export",
            expected="the trainables of the bundle",
            got=f"differences in {', '.join(differing[:5])}",
            todo="export with the bundle that the run was started with",
        )
    if scaling is not None:
        parameters = scaling.folded(parameters, manifest)
    tuned = [
        NamedTensor(f"param.{name}", "float32", tuple(values.shape), values)
        for name, values in parameters.items()
    ]
    weights = bundle.weights()
    coded = decoded_shapes(manifest.frozen)
    frozen = [
        NamedTensor(
            name, "float32", coded[name], partial(decode_weight, manifest.frozen, name, weights)
        )
        if name in coded
        else NamedTensor(name, weights[name].dtype.name, weights[name].shape, weights[name])
        for name in manifest.graphs.infer.weights
    ]
    export_model(bundle.file(manifest.graphs.infer.file), [*frozen, *tuned], out)
    return out
