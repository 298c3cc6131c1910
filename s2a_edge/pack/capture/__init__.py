"""Capture: from a SOURCE to a forward graph with static shapes.

:func:`open_source` reads or exports a backbone once; :meth:`Captured.at_batch` makes it static
for as many batch sizes as a bundle needs, with the same names and the same weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from s2a_edge.pack.capture.backbone import Backbone
from s2a_edge.pack.capture.captured import Captured, sample_shapes, with_input_shapes
from s2a_edge.pack.capture.features import Candidate
from s2a_edge.pack.capture.onnx_file import read_onnx
from s2a_edge.pack.capture.source import SourceSpec, parse_source
from s2a_edge.pack.graph import OPSET
from s2a_edge.spec.errors import SourceError, UsageError
from s2a_edge.spec.manifest import Preprocessing, Source

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


def capture(spec: str, *, batch: int, input_shape: tuple[int, ...] | None = None,
            weights: Path | None = None, features: str | None = None, pool: str | None = None,
            preprocessing: Mapping[str, object] | None = None, seed: int = 0) -> Backbone:
    """The backbone of a SOURCE for one batch size; see :func:`open_source`."""
    return open_source(spec, input_shape=input_shape, weights=weights, features=features,
                       pool=pool, preprocessing=preprocessing, seed=seed).at_batch(batch)


def open_source(spec: str, *, input_shape: tuple[int, ...] | None = None,
                weights: Path | None = None, features: str | None = None, pool: str | None = None,
                preprocessing: Mapping[str, object] | None = None, seed: int = 0) -> Captured:
    """Reads or exports a backbone, batch still open.

    Args:
        spec: ``FILE.onnx``, ``timm:NAME``, ``hf:FOLDER`` or ``package.module:factory``.
        input_shape: of one sample, without the batch; None for the source's own.
        weights: state dict for a PyTorch source; without it timm models are random.
        features: value at which to cut; None for the output (before a final classifier).
        pool: ``cls``, ``mean`` or ``gap``, where the features are not [batch, D].
        preprocessing: fields of ``Preprocessing`` that differ from what the source says. An
            ONNX file says nothing: ImageNet's mean and deviation are assumed.
        seed: of random weights.

    Raises:
        SourceError: if the source cannot be read, exported or found.
        UsageError: if ``preprocessing`` names unknown fields.
    """
    parsed = parse_source(spec)
    if parsed.kind == "onnx":
        return _open_onnx(parsed, input_shape, weights, features, pool, preprocessing)
    from s2a_edge.pack.capture.torch_export import export_graphs

    found: Preprocessing | None
    if parsed.kind == "hf":
        from s2a_edge.pack.capture.hf_model import open_hf

        module, sample, found = open_hf(parsed.name, weights, input_shape, seed)
    elif parsed.kind == "timm":
        from s2a_edge.pack.capture.timm_model import open_timm

        module, shape, found = open_timm(parsed.name, weights, input_shape, seed)
        sample = {"image": (shape, "float32")}
    else:
        from s2a_edge.pack.capture.factory import open_factory

        module, shape = open_factory(parsed.name, weights, input_shape, seed)
        sample = {"image" if _layout(shape) else "input": (shape, "float32")}
        found = _assumed_preprocessing(shape)
    return Captured(
        graph_at=export_graphs(module, sample, spec),
        preprocessing=_override(found, preprocessing),
        source=_source(parsed, weights, features, pool, OPSET),
        rehead=parsed.kind == "factory")


def _open_onnx(parsed: SourceSpec, input_shape: tuple[int, ...] | None, weights: Path | None,
               features: str | None, pool: str | None,
               preprocessing: Mapping[str, object] | None) -> Captured:
    if weights is not None:
        raise SourceError(where=f"--weights {weights}", expected="no --weights for an ONNX file",
                          got="both", todo="the file has its weights; leave --weights off")
    model, opset = read_onnx(Path(parsed.name))
    shapes = sample_shapes(model, input_shape, parsed.name)
    first = next(iter(shapes.values()), ())
    return Captured(
        graph_at=lambda batch: with_input_shapes(model, shapes, batch),
        preprocessing=_override(_assumed_preprocessing(first) if len(shapes) == 1 else None,
                                preprocessing),
        source=_source(parsed, None, features, pool, opset), rehead=True)


def _source(parsed: SourceSpec, weights: Path | None, features: str | None, pool: str | None,
            opset: int) -> Source:
    return Source(kind=parsed.kind, name=parsed.name, weights=str(weights) if weights else None,
                  features=features, pool=pool, opset=opset)


def _layout(shape: tuple[int, ...]) -> str | None:
    """Which axis of an image-like sample holds its three channels; None if none does."""
    if len(shape) != 3:
        return None
    return "NCHW" if shape[0] == 3 else "NHWC" if shape[2] == 3 else None


def _assumed_preprocessing(shape: tuple[int, ...]) -> Preprocessing | None:
    layout = _layout(shape)
    if layout is None:
        return None
    nchw = layout == "NCHW"
    return Preprocessing(
        kind="image", size=(shape[1], shape[2]) if nchw else (shape[0], shape[1]),
        layout="NCHW" if nchw else "NHWC", channels="RGB", scale=1 / 255, mean=_IMAGENET_MEAN,
        std=_IMAGENET_STD, interpolation="bicubic", crop_pct=1.0)


def _override(found: Preprocessing | None, given: Mapping[str, object] | None,
              ) -> Preprocessing | None:
    if not given:
        return found
    if found is None:
        raise UsageError(where="preprocessing", expected="an image input",
                         got="an input that is not an image", todo="leave the options off")
    unknown = set(given) - {"channels", "scale", "mean", "std", "interpolation", "crop_pct"}
    if unknown:
        raise UsageError(where="preprocessing",
                         expected="channels, scale, mean, std, interpolation or crop_pct",
                         got=", ".join(sorted(unknown)), todo="correct the name")
    return replace(found, **given)  # type: ignore[arg-type]  # names checked above, values by the manifest


__all__ = ["Backbone", "Candidate", "Captured", "capture", "open_source", "parse_source"]
