"""The architectures of ``tools/conformance.py``: real code of timm and transformers, made small.

A case names a model of timm with the arguments that shrink it, or a configuration class of
transformers. Weights are drawn by ``tools/conformance_case.py``; nothing is downloaded.
"""

from __future__ import annotations

from typing import Any

from tools.conformance_case import Case


def _timm(name: str, size: int = 64, *, label: str = "", **arguments: Any) -> Case:
    return Case(label or name, "timm", name, arguments, (3, size, size))


def _hf(config: str, label: str, shape: tuple[int, ...], pool: str | None = None,
        **arguments: Any) -> Case:
    return Case(label, "hf", config, arguments, shape, pool)


TRANSFORMERS: tuple[Case, ...] = (
    _timm("vit_tiny_patch16_224", img_size=64, depth=2, embed_dim=64, num_heads=4, label="vit"),
    _hf("BertConfig", "bert", (16,), hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=128, vocab_size=100),
)

CONVOLUTIONAL: tuple[Case, ...] = (
    _timm("resnet18", 64),
)

CASES = (*TRANSFORMERS, *CONVOLUTIONAL)
