"""Text encoders: inputs and their length, attention masks, the mean over tokens that count."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from s2a_edge.pack.capture import Backbone, capture
from s2a_edge.pack.capture.timm_model import define_torchvision_schemas
from s2a_edge.pack.graph import dtype_of, shape_of
from s2a_edge.pack.normalize import normalize
from s2a_edge.spec.errors import SourceError
from tests.pack.capture.running import relative_error, run_model
from tests.pack.compiled import batch_of, compile_captured, parameters, run

_TOLERANCE = 2e-6  # float32 of two layers, summed in another order
_BERT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
         "intermediate_size": 32, "vocab_size": 20}
LENGTHS = (6, 2, 1)


def _transformers() -> Any:
    define_torchvision_schemas()
    return pytest.importorskip("transformers")


def _bert(folder: Path, **options: Any) -> Any:
    transformers = _transformers()
    torch.manual_seed(0)
    model = transformers.BertModel(transformers.BertConfig(**{**_BERT, **options})).eval()
    model.save_pretrained(folder)
    return model


def _texts(tokens: int) -> dict[str, np.ndarray]:
    """Token ids and masks of texts of 6, 2 and 1 tokens."""
    ids = np.random.default_rng(0).integers(0, 20, (len(LENGTHS), tokens))
    mask = np.arange(tokens) < np.array(LENGTHS)[:, None]
    return {"input_ids": ids, "attention_mask": mask.astype(np.int64)}


def _assert_same(backbone: Backbone, feeds: dict[str, np.ndarray], expected: np.ndarray) -> None:
    for form in (backbone, normalize(backbone)):
        given = {str(v.name): feeds[str(v.name)] for v in form.data_inputs}
        assert relative_error(run_model(form.model, given), expected) < _TOLERANCE


@pytest.mark.parametrize("pool", [None, "cls", "mean"])
def test_pools_of_a_text(pool: str | None, tmp_path: Path) -> None:
    model, feeds = _bert(tmp_path), _texts(6)
    with torch.no_grad():
        out = model(**{k: torch.tensor(v) for k, v in feeds.items()})
    tokens, mask = out.last_hidden_state.numpy(), feeds["attention_mask"][..., None]
    expected = {None: out.pooler_output.numpy(), "cls": tokens[:, 0],
                "mean": (tokens * mask).sum(1) / mask.sum(1)}[pool]
    captured = capture(f"hf:{tmp_path}", input_shape=(6,), pool=pool)
    backbone = captured.at_batch(3)
    assert [(str(v.name), dtype_of(v)) for v in backbone.data_inputs] == [
        ("input_ids", ir.DataType.INT64), ("attention_mask", ir.DataType.INT64)]
    _assert_same(backbone, feeds, expected)
    assert backbone.source.pool == pool and captured.notes == ()


@pytest.mark.parametrize(("limit", "tokens"), [(512, 128), (16, 16)])
def test_a_length_that_nobody_names_is_assumed_and_said(limit: int, tokens: int, tmp_path: Path,
                                                        ) -> None:
    _bert(tmp_path, max_position_embeddings=limit)
    captured = capture(f"hf:{tmp_path}")
    assert captured.notes == (
        f"{tokens} tokens a text, shorter ones padded; --input sets another length",)
    assert shape_of(captured.at_batch(2).data_inputs[0]) == (2, tokens)


@pytest.mark.parametrize("shape", [(3, 224, 224), (17,)])
def test_a_length_that_the_model_cannot_take_is_refused(shape: tuple[int, ...], tmp_path: Path,
                                                        ) -> None:
    _bert(tmp_path, max_position_embeddings=16)
    with pytest.raises(SourceError, match="tokens up to 16"):
        capture(f"hf:{tmp_path}", input_shape=shape)


def test_token_types_where_the_tokenizer_makes_them(tmp_path: Path) -> None:
    model, feeds = _bert(tmp_path), _texts(6)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(
        {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}))
    feeds["token_type_ids"] = np.broadcast_to(np.arange(6) > 3, (3, 6)).astype(np.int64)
    with torch.no_grad():
        expected = model(**{k: torch.tensor(v) for k, v in feeds.items()}).pooler_output.numpy()
    backbone = capture(f"hf:{tmp_path}", input_shape=(6,)).at_batch(3)
    assert len(backbone.data_inputs) == 3
    _assert_same(backbone, feeds, expected)


def test_a_sample_without_tokens_leaves_gradients_finite(tmp_path: Path) -> None:
    """What a ragged last batch is padded with; its weight is 0."""
    _bert(tmp_path)
    made = compile_captured(capture(f"hf:{tmp_path}", input_shape=(6,), pool="mean"),
                            micro_batches=(3,), bits=4)
    texts = {k: v * np.array([[1], [1], [0]]) for k, v in _texts(6).items()}
    data = {**{k: v for k, v in batch_of(made, 3).items() if k in ("target", "weight")}, **texts}
    outputs = run(made.steps[3].model, {**data, **parameters(made)})
    assert data["weight"][-1] == 0
    assert all(np.isfinite(value).all() for value in outputs.values())


@pytest.mark.parametrize("opset", [11, 14, 17])
def test_a_file_of_torchs_older_exporter(opset: int, tmp_path: Path) -> None:
    """Two outputs, batch and length open, masks computed from the input."""
    class Both(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bert = _bert(tmp_path, attn_implementation="eager")

        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> tuple[Any, Any]:
            out = self.bert(input_ids=ids, attention_mask=mask)
            return out.last_hidden_state, out.pooler_output

    model, feeds = Both().eval(), _texts(6)
    tensors = tuple(torch.tensor(v) for v in feeds.values())
    path = tmp_path / "text.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about its age, and about tracing
        torch.onnx.export(model, tensors, str(path), opset_version=opset, dynamo=False,
                          input_names=list(feeds), output_names=["tokens", "pooled"],
                          dynamic_axes={n: {0: "n", 1: "t"} for n in feeds})
    captured = capture(str(path), features="tokens", pool="mean", input_shape=(6,))
    with torch.no_grad():
        tokens = model(*tensors)[0].numpy()
    mask = feeds["attention_mask"][..., None]
    _assert_same(captured.at_batch(3), feeds, (tokens * mask).sum(1) / mask.sum(1))


@pytest.mark.parametrize("kind", ["CLIP", "Siglip"])
def test_the_image_tower_of_a_model_of_images_and_texts(kind: str, tmp_path: Path) -> None:
    transformers = _transformers()
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "intermediate_size": 32}
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(
        text_config={**size, "vocab_size": 20, "eos_token_id": 2, "bos_token_id": 1},
        vision_config={**size, "image_size": 16, "patch_size": 8})).eval()
    model.save_pretrained(tmp_path)
    backbone = capture(f"hf:{tmp_path}").at_batch(2)
    x = np.random.default_rng(0).standard_normal((2, 3, 16, 16), np.float32)
    with torch.no_grad():
        expected = model.vision_model(torch.tensor(x)).pooler_output.numpy()
    assert [str(v.name) for v in backbone.data_inputs] == ["pixel_values"]
    _assert_same(backbone, {"pixel_values": x}, expected)


def _onnx_text(path: Path, tokens: int | str) -> Path:
    """[N, T] int64 -> embeddings -> a linear layer: [N, T, 4]; the mask scales the scores."""
    rng = np.random.default_rng(0)
    weights = {"embeddings.weight": rng.standard_normal((20, 8), np.float32),
               "dense.weight": rng.standard_normal((8, 4), np.float32)}
    nodes = [helper.make_node("Gather", ["embeddings.weight", "input_ids"], ["embedded"]),
             helper.make_node("MatMul", ["embedded", "dense.weight"], ["hidden"])]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info(n, TensorProto.INT64, ["n", tokens])
                     for n in ("input_ids", "attention_mask")],
        [helper.make_tensor_value_info("hidden", TensorProto.FLOAT, ["n", tokens, 4])],
        [numpy_helper.from_array(a, n) for n, a in weights.items()])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8),
              path)
    return path


@pytest.mark.parametrize(("given", "tokens", "notes"), [(None, 128, 1), ((6,), 6, 0)])
def test_a_file_with_texts_of_open_length(given: tuple[int, ...] | None, tokens: int, notes: int,
                                          tmp_path: Path) -> None:
    path = _onnx_text(tmp_path / "m.onnx", "tokens")
    captured = capture(str(path), input_shape=given, pool="mean")
    assert len(captured.notes) == notes and captured.preprocessing is None
    backbone = captured.at_batch(3)
    assert shape_of(backbone.data_inputs[0]) == (3, tokens)
    feeds = _texts(tokens)
    weights = {name: np.asarray(backbone.model.graph.initializers[name].const_value)
               for name in ("embeddings.weight", "dense.weight")}
    hidden = weights["embeddings.weight"][feeds["input_ids"]] @ weights["dense.weight"]
    mask = feeds["attention_mask"][..., None]
    _assert_same(backbone, feeds, ((hidden * mask).sum(1) / mask.sum(1)).astype(np.float32))
