"""Small PyTorch backbones that have what ViT and ResNet have, for ``tests.pack.models:tiny_vit``.

A factory takes no arguments when ``pack`` calls it; tests may vary it. Weights are drawn anew with
a spread that makes every gradient count: PyTorch's own start values leave deep ones near zero.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

VIT_INPUT = (3, 16, 16)
RESNET_INPUT = (3, 24, 24)


class LayerScale(nn.Module):
    """x ⊙ γ, [B, T, D]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gamma


class Attention(nn.Module):
    """Multi-head self-attention as timm spells it: one qkv layer, unpacked."""

    def __init__(self, width: int, heads: int, *, qkv_bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, t, d = x.shape
        q, k, v = self.qkv(x).reshape(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        probabilities = (q * (d // self.heads) ** -0.5 @ k.transpose(-2, -1)).softmax(-1)
        mixed: torch.Tensor = (probabilities @ v).transpose(1, 2).reshape(b, t, d)
        out: torch.Tensor = self.proj(mixed)
        return out


class Block(nn.Module):
    """Pre-norm transformer block with optional LayerScale."""

    def __init__(self, width: int, heads: int, *, qkv_bias: bool, layer_scale: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = Attention(width, heads, qkv_bias=qkv_bias)
        self.fc1, self.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.ls1 = LayerScale(width) if layer_scale else nn.Identity()
        self.ls2 = LayerScale(width) if layer_scale else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        out: torch.Tensor = x + self.ls2(self.fc2(nn.functional.gelu(self.fc1(self.norm2(x)))))
        return out


class TinyViT(nn.Module):
    """[N, 3, 16, 16] -> class token [N, 32]; 17 tokens, 4 heads of 8."""

    input_shape = VIT_INPUT

    def __init__(self, *, depth: int = 2, width: int = 32, heads: int = 4, qkv_bias: bool = True,
                 layer_scale: bool = False) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, 4, 4)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(torch.zeros(1, 17, width))
        self.blocks = nn.Sequential(*(Block(width, heads, qkv_bias=qkv_bias,
                                            layer_scale=layer_scale) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.patch(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        out: torch.Tensor = self.norm(self.blocks(x))[:, 0]
        return out


class Residual(nn.Module):
    """A bottleneck: 1x1, 3x3 (strided), 1x1, each with BatchNorm; 1x1 strided short-cut."""

    def __init__(self, width: int, inner: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, inner, 1, bias=False)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, bias=False)
        self.conv3 = nn.Conv2d(inner, out, 1, bias=False)
        self.bn1, self.bn2, self.bn3 = (nn.BatchNorm2d(c) for c in (inner, inner, out))
        self.short: nn.Module = nn.Identity()
        if stride > 1 or width != out:
            self.short = nn.Sequential(nn.Conv2d(width, out, 1, stride, bias=False),
                                       nn.BatchNorm2d(out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(y)))
        return torch.relu(self.bn3(self.conv3(y)) + self.short(x))


class TinyResNet(nn.Module):
    """[N, 3, 24, 24] -> pooled features [N, 32]; max-pool 3x3, stride 2, padding 1."""

    input_shape = RESNET_INPUT

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 7, 2, 3, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.layer1, self.layer2 = Residual(8, 8, 16, 1), Residual(16, 8, 32, 2)
        self.layer3 = Residual(32, 8, 32, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.pool(torch.relu(self.bn(self.stem(image))))
        out: torch.Tensor = self.layer3(self.layer2(self.layer1(x))).mean((2, 3))
        return out


def _drawn(module: nn.Module, *, biases: bool = True) -> nn.Module:
    """Weights of variance 1 / fan-in, norms around their start values, biases of 0.1 or all 0."""
    generator = torch.Generator().manual_seed(3)

    def draw(parameter: torch.Tensor, spread: float, mean: float = 0.0) -> None:
        with torch.no_grad():
            parameter.copy_(mean + spread * torch.randn(parameter.shape, generator=generator))

    for part in module.modules():
        if isinstance(part, (nn.Linear, nn.Conv2d)):
            draw(part.weight, part.weight[0].numel() ** -0.5)
        elif isinstance(part, (nn.LayerNorm, nn.BatchNorm2d)):
            draw(part.weight, 0.1, 1.0)
        elif isinstance(part, LayerScale):
            draw(part.gamma, 0.2, 0.7)
        elif isinstance(part, TinyViT):
            draw(part.token, 1.0)
            draw(part.position, 0.5)
        if isinstance(part, nn.BatchNorm2d):
            assert part.running_mean is not None and part.running_var is not None
            draw(part.running_mean, 0.1)
            draw(part.running_var, 0.05, 1.0)
        bias = getattr(part, "bias", None)
        if isinstance(bias, nn.Parameter):
            draw(bias, 0.1 if biases else 0.0)
    return module.eval()


def tiny_vit() -> nn.Module:
    """Two blocks, all biases non-zero."""
    return _drawn(TinyViT())


def tiny_vit_scaled() -> nn.Module:
    """With LayerScale, and without a bias in the qkv layer."""
    return _drawn(TinyViT(qkv_bias=False, layer_scale=True))


def tiny_vit_zero() -> nn.Module:
    """All biases zero: exporters merge them into one tensor."""
    return _drawn(TinyViT(), biases=False)


def tiny_resnet() -> nn.Module:
    """Three bottlenecks, one with stride 2."""
    return _drawn(TinyResNet())


class Unsupported(nn.Module):
    """Two operators without a differentiation rule, in two modules."""

    input_shape = (3, 8, 8)

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.bend, self.mix = Bend(torch.atan), Bend(torch.asinh)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.bend(self.first(image)).flatten(2)
        mixed: torch.Tensor = self.mix(x)
        return mixed.mean(1)


class Bend(nn.Module):
    """A function of one tensor as a module."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


def unsupported() -> nn.Module:
    """For the report of missing rules: Atan and Asinh."""
    return _drawn(Unsupported())
