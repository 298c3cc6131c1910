"""A plain inference ONNX model with the tuned values merged, written without the onnx package."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from s2a_edge.run.device_tensor import Array
from s2a_edge.spec.bundle import Bundle
from s2a_edge.spec.errors import CheckpointError
from s2a_edge.spec.onnx_export import NamedTensor, export_model


def export(bundle: Bundle, parameters: Mapping[str, Array], out: Path) -> Path:
    """Write the tuned model; frozen weights are streamed from the bundle, never all in memory.

    Args:
        bundle: what was trained.
        parameters: tuned values by trainable, float32.
        out: the ONNX file to create or replace.

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
    tuned = [
        NamedTensor(f"param.{name}", "float32", tuple(values.shape), values)
        for name, values in parameters.items()
    ]
    weights = bundle.weights()
    frozen = [
        NamedTensor(name, weights[name].dtype.name, weights[name].shape, weights[name])
        for name in manifest.graphs.infer.weights
    ]
    export_model(bundle.file(manifest.graphs.infer.file), [*frozen, *tuned], out)
    return out
