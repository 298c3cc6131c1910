"""One architecture of the conformance table: its module, its weights, its inputs."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from s2a_edge.pack.capture.timm_model import define_torchvision_schemas

_MATRICES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d)


@dataclass(frozen=True)
class Case:
    """An architecture.

    Attributes:
        name: of its row in the table.
        library: ``timm``, ``torchvision`` or ``hf``.
        model: what ``timm.create_model`` takes, a function of torchvision.models, or a
            configuration class of transformers.
        arguments: of it; they make the model small, never another architecture.
        shape: of one sample, without the batch; one axis is a text of so many tokens.
        pool: as ``--pool``.
        cut: paths of lists of blocks, and how many of each are kept.
    """

    name: str
    library: str
    model: str
    arguments: Mapping[str, Any]
    shape: tuple[int, ...]
    pool: str | None = None
    cut: Mapping[str, int] = field(default_factory=dict)


def build(case: Case, seed: int = 0) -> nn.Module:
    """The module in evaluation mode, with weights through which every path has a signal."""
    define_torchvision_schemas()
    torch.manual_seed(seed)
    if case.library == "timm":
        timm = importlib.import_module("timm")
        module: nn.Module = timm.create_model(case.model, pretrained=False, num_classes=0,
                                              **case.arguments)
    elif case.library == "torchvision":
        models = importlib.import_module("torchvision.models")
        module = _without_classifier(getattr(models, case.model)(weights=None, **case.arguments))
    else:
        transformers = importlib.import_module("transformers")
        config = getattr(transformers, case.model)(**case.arguments)
        module = transformers.AutoModel.from_config(config, attn_implementation="eager")
    for path, kept in case.cut.items():
        parent, _, name = path.rpartition(".")
        holder = module.get_submodule(parent)
        setattr(holder, name, getattr(holder, name)[:kept])
    draw_weights(module)
    return module.eval().requires_grad_(False)


def _without_classifier(module: nn.Module) -> nn.Module:
    """Ends in what the last linear layer reads; a convolution as classifier stays."""
    linear = [name for name, part in module.named_modules() if isinstance(part, nn.Linear)]
    if linear:
        parent, _, child = linear[-1].rpartition(".")
        setattr(module.get_submodule(parent), child, nn.Identity())
    return module


def draw_weights(module: nn.Module) -> None:
    """Draws what an initialization leaves constant, and matrices so that signals keep their size.

    As made, LayerScale factors are 1e-6, the last norm of a residual branch is zero, and biases
    are zero: gradients would vanish, and errors in them would not show.
    """
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, _MATRICES):
                part.weight.normal_(0.0, part.weight[0].numel() ** -0.5)
            if isinstance(part, nn.modules.batchnorm._NormBase) and part.running_mean is not None:
                assert part.running_var is not None
                part.running_mean.normal_(0.0, 0.1)
                part.running_var.uniform_(0.8, 1.2)
        for name, parameter in module.named_parameters():
            if parameter.numel() < 2:
                continue
            constant = bool((parameter == parameter.flatten()[0]).all())
            if parameter.ndim == 1 and name.endswith(("bias", "beta")):
                parameter.normal_(0.0, 0.1)
            elif parameter.ndim == 1 and constant:
                parameter.normal_(0.8, 0.1)
            elif parameter.ndim > 1 and constant \
                    and not name.endswith(("logit_scale", "temperature")):
                parameter.normal_(0.0, 0.1)


def feeds(case: Case, inputs: Mapping[str, tuple[tuple[int, ...], str]], batch: int, seed: int = 0,
          ) -> dict[str, np.ndarray]:
    """Inputs [batch, ...] by name: noise for images; tokens, a ragged mask and types for texts."""
    rng = np.random.default_rng(seed)
    made: dict[str, np.ndarray] = {}
    for name, (shape, dtype) in inputs.items():
        if dtype == "float32":
            made[name] = rng.standard_normal((batch, *shape)).astype(np.float32)
        elif "mask" in name:
            lengths = shape[0] - np.arange(batch)[:, None] * (shape[0] // 4)
            made[name] = (np.arange(shape[0]) < lengths).astype(dtype)
        elif "type" in name:
            made[name] = np.broadcast_to(np.arange(shape[0]) >= shape[0] // 2,
                                         (batch, *shape)).astype(dtype)
        else:
            words = int(case.arguments.get("vocab_size", 100))
            made[name] = rng.integers(3, words, (batch, *shape)).astype(dtype)
    return made


def targets(batch: int, classes: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Soft targets [batch, classes] and unequal weights [batch] of a training step."""
    rng = np.random.default_rng(seed + 1)
    hard = np.eye(classes, dtype=np.float32)[rng.integers(classes, size=batch)]
    weight = rng.uniform(0.5, 1.5, batch).astype(np.float32) / batch
    return {"target": 0.9 * hard + np.float32(0.1 / classes), "weight": weight}
