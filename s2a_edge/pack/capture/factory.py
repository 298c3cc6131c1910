"""Backbones from a user's own callable: ``package.module:factory``."""

from __future__ import annotations

import importlib
import sys
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

from s2a_edge.pack.capture.torch_export import require
from s2a_edge.pack.capture.weights_file import load_weights
from s2a_edge.spec.errors import SourceError

if TYPE_CHECKING:
    import torch


def open_factory(spec: str, weights: Path | None, input_shape: tuple[int, ...] | None, seed: int,
                 ) -> tuple[torch.nn.Module, tuple[int, ...]]:
    """Calls the factory; the module in evaluation mode and its input shape without the batch.

    The shape is ``input_shape``, or the attribute ``input_shape`` of the module or factory. The
    current folder is importable, as with ``python -m``.

    Raises:
        SourceError: if it cannot be imported, is no module, or its input shape is not known.
    """
    torch = require("torch", spec)
    module_name, _, attribute = spec.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        factory: Any = reduce(getattr, attribute.split("."), importlib.import_module(module_name))
    except (ImportError, AttributeError) as error:
        raise SourceError(where=spec, expected="an importable factory", got=str(error),
                          todo="run from the folder that holds it, or install its package"
                          ) from error
    torch.manual_seed(seed)
    module = factory if isinstance(factory, torch.nn.Module) else factory()
    if not isinstance(module, torch.nn.Module):
        raise SourceError(where=spec, expected="a callable that returns a torch.nn.Module",
                          got=type(module).__name__, todo="return the module from the factory")
    shape = input_shape or getattr(module, "input_shape", None) or getattr(
        factory, "input_shape", None)
    if shape is None:
        raise SourceError(where=spec, expected="an input shape", got="none",
                          todo="give --input 3x224x224, or set input_shape on the factory")
    if weights is not None:
        load_weights(module, weights)
    return module.eval(), tuple(int(d) for d in shape)
