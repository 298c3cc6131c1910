"""Small PyTorch backbones, for ``package.module:factory`` sources."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, t, d = x.shape
        q, k, v = self.qkv(x).reshape(b, t, 3, self.heads, d // self.heads).permute(
            2, 0, 3, 1, 4).unbind(0)
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        out: torch.Tensor = self.proj(y.transpose(1, 2).reshape(b, t, d))
        return out


class Tokens(nn.Module):
    """Patches, a class token, one attention block, a classifier of five classes."""

    input_shape = (3, 16, 16)

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, 8, 8)
        self.cls = nn.Parameter(torch.randn(1, 1, width))
        self.pos = nn.Parameter(torch.randn(1, 5, width))
        self.norm = nn.LayerNorm(width)
        self.attn = Attention(width, 4)
        self.fc1 = nn.Linear(width, 2 * width)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(2 * width, width)
        self.head = nn.Linear(width, 5)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1) + self.pos
        x = x + self.attn(self.norm(x))
        x = x + self.fc2(self.act(self.fc1(x)))
        return x[:, 0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.features(x))
        return logits


class Branches(nn.Module):
    """Branches on the value of its input: not to be exported."""

    input_shape = (4,)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if bool(x.sum() > 0) else -x


class BatchSizeInside(nn.Module):
    """Computes with the batch as a Python number: exported once per batch."""

    input_shape = (4, 6)

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = [x[i] * (i + 1) for i in range(x.shape[0])]
        out: torch.Tensor = self.fc(torch.stack(rows)).mean(1)
        return out


def tokens() -> nn.Module:
    return Tokens()


def plain_features() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())


def no_module() -> Any:
    return 3


tokens.input_shape = (3, 16, 16)  # type: ignore[attr-defined]  # what a user's factory may carry
