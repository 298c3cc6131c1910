"""Capture: from a SOURCE to a forward graph with static shapes.

:func:`capture` reads or exports a backbone once; :meth:`Captured.at_batch` makes it static for
as many batch sizes as a bundle needs, with the same names and the same weights.
"""

from __future__ import annotations

from pathlib import Path

from s2a_edge.pack.capture.backbone import Backbone
from s2a_edge.pack.capture.captured import (
    Captured,
    fixed_batch,
    sample_shapes,
    with_input_shapes,
)
from s2a_edge.pack.capture.features import Candidate
from s2a_edge.pack.capture.onnx_file import read_onnx
from s2a_edge.pack.capture.preprocessing import (
    PreprocessingOptions,
    assumed_preprocessing,
    image_layout,
)
from s2a_edge.pack.capture.source import SourceSpec, parse_source
from s2a_edge.pack.capture.tokenizer import find_tokenizer, text_preprocessing
from s2a_edge.pack.graph import OPSET
from s2a_edge.spec.errors import SourceError
from s2a_edge.spec.manifest import Preprocessing, Source
from s2a_edge.spec.text_inputs import TOKENS_INPUT


def capture(spec: str, *, input_shape: tuple[int, ...] | None = None, weights: Path | None = None,
            features: str | None = None, pool: str | None = None, seed: int = 0,
            mean: tuple[float, float, float] | None = None,
            std: tuple[float, float, float] | None = None, scale: float | None = None,
            channels: str | None = None, crop_pct: float | None = None,
            interpolation: str | None = None, loss: str | None = None,
            tokenizer: Path | None = None) -> Captured:
    """Reads or exports a backbone, its batch still open.

    Args:
        spec: ``FILE.onnx``, ``timm:NAME``, ``hf:FOLDER_OR_CONFIG`` or ``package.module:factory``.
        input_shape: of one sample, without the batch; None for the source's own.
        weights: state dict for a PyTorch source; without it timm models are random.
        features: value (or module) at which to cut; None for the output, before a classifier.
        pool: ``cls``, ``mean`` or ``gap``, where the features are not [batch, D].
        seed: of random weights.
        mean, std, scale, channels, crop_pct, interpolation: preprocessing that differs from what
            the source says; see :class:`PreprocessingOptions`. An ONNX file says nothing:
            ImageNet's values are assumed for it.
        loss: of an ONNX file, the output that is its own loss; no features are looked for then.
        tokenizer: a ``tokenizer.json``; None: that of a transformers folder, if it has one.

    Raises:
        SourceError: if the source cannot be found, read or exported.
        UsageError: if a preprocessing value cannot be used.
    """
    options = PreprocessingOptions(mean, std, scale, channels, crop_pct, interpolation)
    parsed = parse_source(spec)
    if parsed.kind == "onnx":
        return _capture_onnx(parsed, input_shape, weights, features, pool, options, loss,
                             tokenizer)
    if loss is not None:
        raise SourceError(where=f"--loss output:{loss}", expected="an ONNX file",
                          got=f"{parsed.kind}:{parsed.name}",
                          todo="export the model together with its loss to ONNX")
    return _capture_torch(parsed, input_shape, weights, features, pool, options, seed, tokenizer)


def _capture_onnx(parsed: SourceSpec, input_shape: tuple[int, ...] | None, weights: Path | None,
                  features: str | None, pool: str | None, options: PreprocessingOptions,
                  loss: str | None, tokenizer: Path | None) -> Captured:
    if weights is not None:
        raise SourceError(where=f"--weights {weights}", expected="no --weights for an ONNX file",
                          got="both", todo="the file has its weights; leave --weights off")
    model, opset = read_onnx(Path(parsed.name), features)
    shapes, notes = sample_shapes(model, input_shape, parsed.name)
    only = next(iter(shapes.values())) if len(shapes) == 1 else ()
    image = options.applied_to(assumed_preprocessing(only))
    return Captured(
        graph_at=lambda batch: with_input_shapes(model, shapes, batch),
        preprocessing=image if tokenizer is None else text_preprocessing(tokenizer, shapes),
        tokenizer=tokenizer,
        source=_source(parsed, None, features, pool, opset), rehead=True,
        fixed_batch=fixed_batch(model), notes=notes, loss=loss)


def _capture_torch(parsed: SourceSpec, input_shape: tuple[int, ...] | None, weights: Path | None,
                   features: str | None, pool: str | None, options: PreprocessingOptions,
                   seed: int, tokenizer: Path | None) -> Captured:
    """Through torch's exporter; the modules that need torch are imported here, not above."""
    from s2a_edge.pack.capture.factory import open_factory
    from s2a_edge.pack.capture.hf_model import WRAPPED_AS, open_hf
    from s2a_edge.pack.capture.timm_model import open_timm
    from s2a_edge.pack.capture.torch_export import export_graphs

    found: Preprocessing | None
    notes: tuple[str, ...] = ()
    if parsed.kind == "hf":
        module, sample, found, notes = open_hf(parsed.name, weights, input_shape, seed, pool)
        if tokenizer is None and TOKENS_INPUT in sample:
            tokenizer = find_tokenizer(parsed.name)
    elif parsed.kind == "timm":
        module, shape, found = open_timm(parsed.name, weights, input_shape, seed)
        sample = {"image": (shape, "float32")}
    else:
        module, shape = open_factory(parsed.name, weights, input_shape, seed)
        sample = {"image" if image_layout(shape) else "input": (shape, "float32")}
        found = assumed_preprocessing(shape)
    return Captured(
        graph_at=export_graphs(module, sample, f"{parsed.kind}:{parsed.name}",
                               WRAPPED_AS if parsed.kind == "hf" else ""),
        preprocessing=options.applied_to(found) if tokenizer is None else text_preprocessing(
            tokenizer, {name: shape for name, (shape, _) in sample.items()}),
        tokenizer=tokenizer,
        source=_source(parsed, weights, features, pool, OPSET), rehead=parsed.kind == "factory",
        notes=notes)


def _source(parsed: SourceSpec, weights: Path | None, features: str | None, pool: str | None,
            opset: int) -> Source:
    return Source(kind=parsed.kind, name=parsed.name, weights=str(weights) if weights else None,
                  features=features, pool=pool, opset=opset)


open_source = capture

__all__ = ["Backbone", "Candidate", "Captured", "capture", "open_source", "parse_source"]
