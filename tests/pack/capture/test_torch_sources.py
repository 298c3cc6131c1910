"""Backbones from PyTorch: a factory, timm, transformers."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from safetensors.torch import save_file

from s2a_edge.pack.capture import Captured, capture
from s2a_edge.pack.capture.factory import open_factory
from s2a_edge.pack.capture.weights_file import load_weights
from s2a_edge.pack.graph import module_of, shape_of
from s2a_edge.pack.normalize import normalize
from s2a_edge.spec.errors import SourceError
from s2a_edge.spec.manifest import Preprocessing
from tests.pack.capture import modules
from tests.pack.capture.running import (
    RELATIVE_TOLERANCE,
    both_forms,
    random_inputs,
    relative_error,
    run_eager,
    run_model,
)

_TOKENS = "tests.pack.capture.modules:tokens"


def _assert_same(captured: Captured, module: Any, batches: tuple[int, ...] = (1, 3)) -> None:
    """Captured and normalized graphs against eager PyTorch, and equal names in all batches."""
    named: list[set[str]] = []
    for batch in batches:
        backbone, normalized = both_forms(captured, batch)
        feeds = random_inputs(backbone)
        expected = run_eager(module, feeds)
        for form in (backbone, normalized):
            assert relative_error(run_model(form.model, feeds), expected) < RELATIVE_TOLERANCE
        named.append({n for n, v in normalized.model.graph.initializers.items()
                      if v.dtype == ir.DataType.FLOAT and shape_of(v) != ()})
    assert named[0] == named[-1]


@pytest.fixture(scope="module")
def tokens_file(tmp_path_factory: pytest.TempPathFactory) -> tuple[modules.Tokens, Path]:
    torch.manual_seed(5)
    module = modules.Tokens().eval()
    path = tmp_path_factory.mktemp("weights") / "tokens.safetensors"
    save_file(module.state_dict(), path)
    return module, path


@pytest.fixture(scope="module")
def own_tokens(tokens_file: tuple[modules.Tokens, Path]) -> Captured:
    return capture(_TOKENS, weights=tokens_file[1])


def test_factory(tokens_file: tuple[modules.Tokens, Path], own_tokens: Captured) -> None:
    module, path = tokens_file
    captured = own_tokens
    _assert_same(captured, module.features)
    assert isinstance(captured.preprocessing, Preprocessing)
    assert captured.preprocessing.size == (16, 16)
    assert (captured.source.kind, captured.source.weights) == ("factory", str(path))
    graph = normalize(captured.at_batch(2)).model.graph
    ops = [n.op_type for n in graph]
    assert {"FusedMatMul", "LayerNormalization", "Gelu"} <= set(ops)
    assert {"attn.qkv.weight", "attn.qkv.bias", "fc1.bias", "norm.weight"} <= set(
        graph.initializers)
    assert "head.weight" not in graph.initializers
    gelu = next(n for n in graph if n.op_type == "Gelu")
    assert module_of(gelu) == "act"


def test_weights_are_the_modules_memory(own_tokens: Captured) -> None:
    captured = own_tokens
    first, second = (normalize(captured.at_batch(b)).model.graph.initializers for b in (1, 2))
    for name in ("patch.weight", "attn.qkv.weight", "fc1.weight", "pos"):
        a, b = first[name].const_value, second[name].const_value
        assert a is not None and b is not None
        assert np.shares_memory(a.numpy(), b.numpy())


def test_seed_decides_random_weights() -> None:
    def weight(seed: int) -> torch.Tensor:
        tensor: torch.Tensor = open_factory(_TOKENS, None, None, seed)[0].state_dict()["pos"]
        return tensor

    assert torch.equal(weight(1), weight(1))
    assert not torch.equal(weight(1), weight(2))


@pytest.mark.parametrize(("name", "message"), [
    ("tests.pack.capture.nowhere:f", "importable factory"),
    ("tests.pack.capture.modules:nothing", "importable factory"),
    ("tests.pack.capture.modules:no_module", "returns a torch.nn.Module"),
    ("tests.pack.capture.modules:plain_features", "--input 3x224x224"),
    ("tests.pack.capture.modules:Branches", "torch.onnx.export can capture"),
])
def test_factory_errors(name: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        capture(name).at_batch(2)


def test_factory_with_input() -> None:
    backbone = capture("tests.pack.capture.modules:plain_features",
                       input_shape=(3, 8, 8)).at_batch(2)
    assert shape_of(backbone.features) == (2, 4)


def test_module_that_needs_its_batch_is_exported_per_batch() -> None:
    torch.manual_seed(0)
    module = modules.BatchSizeInside().eval()
    _assert_same(capture("tests.pack.capture.modules:BatchSizeInside"), module)


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    state = modules.Tokens().state_dict()
    state["patch.weight"] = torch.zeros(16, 3, 4, 4)
    state["extra.weight"] = state.pop("fc1.weight")
    path = tmp_path / "w.safetensors"
    save_file(state, path)
    with pytest.raises(SourceError, match=r"missing: fc1.weight; unexpected: extra.weight; "
                       r"shape: patch.weight \[16, 3, 4, 4\] for \[16, 3, 8, 8\]"):
        capture(_TOKENS, weights=path)


class _Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("bomb-went-off"),))


def test_pickled_code_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "w.pth"
    torch.save({"patch.weight": _Bomb()}, path)
    with pytest.raises(SourceError, match="a file of plain tensors"):
        capture(_TOKENS, weights=path)
    path.write_bytes(pickle.dumps(_Bomb()))
    with pytest.raises(SourceError, match="a file of plain tensors"):
        capture(_TOKENS, weights=path)
    assert not Path("bomb-went-off").exists()


def test_weight_files(tmp_path: Path, tokens_file: tuple[modules.Tokens, Path]) -> None:
    module, _ = tokens_file
    path = tmp_path / "w.pth"
    torch.save({"state_dict": {f"module.{k}": v for k, v in module.state_dict().items()}}, path)
    other = modules.Tokens()
    load_weights(other, path)
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in module.state_dict().items())
    for name, message in [("none.pth", "no such file"), ("w.h5", r"\.safetensors"),
                          ("w.onnx", "pack it directly"), ("bad.safetensors", "plain tensors")]:
        if name != "none.pth":
            (tmp_path / name).write_bytes(b"0123456789")
        with pytest.raises(SourceError, match=message):
            capture(_TOKENS, weights=tmp_path / name)


def _without(module: str, spec: str) -> str:
    """The error of capturing ``spec`` where ``module`` is not installed."""
    code = (f"import sys; sys.modules[{module!r}] = None\n"
            "from s2a_edge.pack.capture import capture\n"
            "from s2a_edge.spec.errors import SourceError\n"
            f"try:\n    capture({spec!r})\nexcept SourceError as e:\n    print(e)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_missing_packages_say_what_to_install() -> None:
    assert "pip install 's2a-edge[pack]'" in _without("torch", "timm:resnet18")
    assert "pip install 's2a-edge[pack]'" in _without("torch", "a.b:c")
    assert "pip install timm" in _without("timm", "timm:resnet18")


def _timm() -> Any:
    from s2a_edge.pack.capture.timm_model import define_torchvision_schemas

    define_torchvision_schemas()
    return pytest.importorskip("timm")


def test_timm_unknown_name_lists_close_matches() -> None:
    _timm()
    with pytest.raises(SourceError, match=r"close: .*resnet18"):
        capture("timm:resnet_18")


def test_timm_resnet(tmp_path: Path) -> None:
    timm = _timm()
    torch.manual_seed(3)
    module = timm.create_model("resnet10t", num_classes=7).eval()
    for name, buffer in module.named_buffers():  # statistics that folding must not lose
        if name.endswith("running_mean"):
            buffer.uniform_(-1, 1)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 2)
    path = tmp_path / "w.safetensors"
    save_file(module.state_dict(), path)  # with a classifier, which the backbone leaves out
    captured = capture("timm:resnet10t", weights=path, input_shape=(3, 32, 32))
    module.reset_classifier(0)
    _assert_same(captured, module)
    graph = normalize(captured.at_batch(2)).model.graph
    convs = [n for n in graph if n.op_type == "Conv"]
    assert {f"{module_of(n)}.bias" for n in convs} == {str(n.inputs[2].name) for n in convs
                                                       if n.inputs[2] is not None}
    assert "layer1.0.conv1.bias" in graph.initializers
    assert "BatchNormalization" not in {n.op_type for n in graph}
    found = captured.preprocessing
    assert isinstance(found, Preprocessing)
    assert (found.size, found.crop_pct) == ((32, 32), module.pretrained_cfg["crop_pct"])


@pytest.mark.slow
def test_timm_vit_at_another_size() -> None:
    timm = _timm()
    torch.manual_seed(0)
    module = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=32).eval()
    captured = capture("timm:vit_tiny_patch16_224", input_shape=(3, 32, 32))
    _assert_same(captured, module, (2,))
    names = [c.name for c in captured.candidates()]
    assert names and {c.residual for c in captured.candidates()[:4]} == {True}
    assert shape_of(captured.at_batch(2).data_inputs[0]) == (2, 3, 32, 32)


def _transformers() -> Any:
    from s2a_edge.pack.capture.timm_model import define_torchvision_schemas

    define_torchvision_schemas()
    return pytest.importorskip("transformers", exc_type=ImportError)


@pytest.mark.parametrize("kind", ["ViT", pytest.param("DeiT", marks=pytest.mark.slow)])
def test_transformers_vision(tmp_path: Path, kind: str) -> None:
    transformers = _transformers()
    config = getattr(transformers, f"{kind}Config")(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        image_size=16, patch_size=8)
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}Model")(config).eval()
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({
        "image_mean": [0.4, 0.5, 0.6], "image_std": [0.1, 0.2, 0.3], "resample": 3,
        "size": {"shortest_edge": 20}, "crop_size": {"height": 16, "width": 16},
        "do_center_crop": True, "rescale_factor": 0.5}))
    captured = capture(f"hf:{tmp_path}")
    _assert_same(captured, lambda x: model(x).pooler_output)
    found = captured.preprocessing
    assert isinstance(found, Preprocessing)
    assert (found.mean, found.interpolation, found.crop_pct, found.scale) == (
        (0.4, 0.5, 0.6), "bicubic", 0.8, 0.5)
    biases = [n for n in normalize(captured.at_batch(1)).model.graph.initializers
              if n.endswith(".bias")]
    assert len(biases) == 1 + 8 + 1 + 1  # patches, one layer, last norm, pooler


def test_transformers_text_needs_a_pool(tmp_path: Path) -> None:
    transformers = _transformers()
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        vocab_size=20, max_position_embeddings=16)
    config.save_pretrained(tmp_path)
    captured = capture(f"hf:{tmp_path / 'config.json'}", input_shape=(6,))
    assert captured.preprocessing is None
    backbone = captured.at_batch(2)
    assert [str(v.name) for v in backbone.data_inputs] == ["input_ids", "attention_mask"]
    assert shape_of(backbone.features) == (2, 16)


def test_transformers_errors(tmp_path: Path) -> None:
    _transformers()
    with pytest.raises(SourceError, match="nothing is fetched"):
        capture("hf:org/model")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(SourceError, match="transformers can open"):
        capture(f"hf:{tmp_path}")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_base_patch16_224",
                                  "deit_small_patch16_224", "resnet18", "resnet50"])
def test_timm_at_full_size(name: str) -> None:
    timm = _timm()
    torch.manual_seed(0)
    module = timm.create_model(name, num_classes=0).eval()
    _assert_same(capture(f"timm:{name}"), module, (1, 2))
