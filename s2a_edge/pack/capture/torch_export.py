"""PyTorch modules as ONNX graphs, through ``torch.onnx.export(dynamo=True)``.

torch is imported inside the functions: packing from ONNX works without it.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
from onnx_ir.passes import common as passes

from s2a_edge.pack.capture.captured import with_input_shapes
from s2a_edge.pack.capture.modules import SCOPES_KEY
from s2a_edge.pack.capture.torch_attention import attention_of_any_rank
from s2a_edge.pack.graph import OPSET
from s2a_edge.spec.errors import SourceError

if TYPE_CHECKING:
    import torch

Sample = dict[str, tuple[tuple[int, ...], str]]

_LARGEST_BATCH = 65_536


def require(module: str, why: str) -> Any:
    """Imports an optional package of the host.

    Raises:
        SourceError: if it is not installed; says what to install.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        extra = "pip install 's2a-edge[pack]'" if module == "torch" else f"pip install {module}"
        raise SourceError(where=why, expected=f"the package {module}",
                          got=f"it cannot be imported ({error})", todo=extra) from error


def export_graphs(module: torch.nn.Module, sample: Sample, where: str, wrapped_as: str = "",
                  ) -> Callable[[int], ir.Model]:
    """A function that gives the graph of ``module`` for a batch, inputs static.

    The module is exported once with an open batch axis; where it cannot be, once per batch.
    Weights are views of the module's parameters, never copies.

    Args:
        module: in evaluation mode.
        sample: per input of ``forward``, in its order: shape without the batch, and dtype.
        where: the SOURCE, for errors.
        wrapped_as: attribute of ``module`` that holds the user's own module: names leave it out.

    Raises:
        SourceError: if torch cannot export the module.
    """
    shapes = {name: shape for name, (shape, _) in sample.items()}
    template: ir.Model | None = None
    with contextlib.suppress(*_export_errors()):
        template = _export(module, sample, batch=2, open_batch=True)
    # torch falls back to a fixed batch without a word where it cannot keep it open.
    if template is None or not all(_is_open(v) for v in template.graph.inputs):
        return lambda batch: with_input_shapes(
            _checked_export(module, sample, batch, where, wrapped_as), shapes, batch)
    _rename(template, list(sample), wrapped_as)
    return lambda batch: with_input_shapes(template, shapes, batch)


def _is_open(value: ir.Value) -> bool:
    return value.shape is not None and not isinstance(value.shape[0], int)


def _checked_export(module: torch.nn.Module, sample: Sample, batch: int, where: str,
                    wrapped_as: str) -> ir.Model:
    try:
        model = _export(module, sample, batch=batch, open_batch=False)
    except _export_errors() as error:
        cause = _root_cause(error)
        raise SourceError(
            where=where, expected="a module that torch.onnx.export can capture",
            got=f"{type(cause).__name__}: {str(cause).strip().splitlines()[0][:300]}"
            if str(cause).strip() else type(cause).__name__,
            todo="check --input; or export it to ONNX yourself and pack the file") from error
    _rename(model, list(sample), wrapped_as)
    return model


def _export(module: torch.nn.Module, sample: Sample, *, batch: int, open_batch: bool) -> ir.Model:
    import torch

    tensors = tuple(_example(shape, dtype, batch) for shape, dtype in sample.values())
    dynamic = None
    if open_batch:
        axis = torch.export.Dim("batch", min=1, max=_LARGEST_BATCH)
        dynamic = tuple({0: axis} for _ in tensors)
    with _quiet(), attention_of_any_rank():
        program = torch.onnx.export(
            module, tensors, dynamo=True, opset_version=OPSET, dynamic_shapes=dynamic,
            optimize=False, verbose=False, external_data=False)
    assert program is not None
    model = program.model
    passes.InlinePass()(model)
    return model


def _example(shape: Sequence[int], dtype: str, batch: int) -> torch.Tensor:
    import torch

    if dtype == "float32":
        return torch.zeros(batch, *shape)
    return torch.ones(batch, *shape, dtype=getattr(torch, dtype))


def _rename(model: ir.Model, inputs: list[str], wrapped_as: str) -> None:
    """Names the inputs, and takes the wrapper's attribute off parameters and module paths."""
    graph = model.graph
    for value, name in zip(graph.inputs, inputs, strict=True):
        value.name = name
    if not wrapped_as:
        return
    prefix = f"{wrapped_as}."
    for value in list(graph.initializers.values()):
        value.name = str(value.name).removeprefix(prefix)
    for node in graph:
        scopes = node.metadata_props.get(SCOPES_KEY, "")
        node.metadata_props[SCOPES_KEY] = scopes.replace(f"'{prefix}", "'").replace(
            f"'{wrapped_as}'", "''")


def _export_errors() -> tuple[type[BaseException], ...]:
    """What the exporter raises for a module that it cannot capture."""
    from torch.onnx import errors

    return (errors.OnnxExporterError, RuntimeError, ValueError, TypeError, AssertionError)


def _root_cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's notices speak to its own users."""
    loggers = [logging.getLogger(n) for n in ("torch.onnx", "torch.export", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
