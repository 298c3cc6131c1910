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


def _torchvision(name: str, size: int = 64) -> Case:
    return Case(name, "torchvision", name, {}, (3, size, size))


TRANSFORMERS: tuple[Case, ...] = (
    _timm("vit_tiny_patch16_224", img_size=64, depth=2, embed_dim=64, num_heads=4, label="vit"),
    _hf("BertConfig", "bert", (16,), hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=128, vocab_size=100),
)

CONVOLUTIONAL: tuple[Case, ...] = (
    _timm("convnext_atto"),
    _timm("convnext_zepto_rms"),
    _timm("convnextv2_atto"),
    _timm("resnet18"),
    _timm("resnet26d"),
    _timm("resnet50", 96),
    _timm("resnetv2_18"),
    _timm("resnet50_gn", layers=(1, 1, 1, 1)),
    _timm("resnetv2_50x1_bit"),
    _timm("resnetblur18"),
    _timm("res2net50_26w_4s", layers=(1, 1, 1, 1)),
    _timm("resnext50_32x4d"),
    _timm("seresnet18"),
    _timm("skresnet18"),
    _timm("resnest14d"),
    _timm("regnetx_002"),
    _timm("regnety_002"),
    _timm("regnetz_005"),
    _timm("densenet121", block_config=(2, 3, 4, 2)),
    _timm("vgg11", 32, label="vgg11, 32 px"),
    _timm("vgg11_bn", 32, label="vgg11_bn, 32 px"),
    _timm("mobilenetv2_050"),
    _timm("mobilenetv3_small_050"),
    _timm("mobilenetv3_large_100"),
    _timm("mobilenetv4_conv_small"),
    _timm("mobilenetv4_conv_aa_medium"),
    _timm("mobilenetv4_hybrid_medium_075"),
    _timm("efficientnet_b0"),
    _timm("efficientnetv2_rw_t"),
    _timm("efficientnet_lite0"),
    _timm("tf_efficientnet_lite0"),
    _timm("efficientnet_es"),
    _timm("efficientnet_b0_gn"),
    _timm("ghostnet_050"),
    _timm("ghostnetv2_100"),
    _timm("ghostnetv3_050"),
    _timm("repvgg_a0"),
    _timm("mobileone_s0"),
    _timm("hrnet_w18_small"),
    _timm("mixnet_s"),
    _timm("darknet17"),
    _timm("rexnet_100"),
    _timm("nfnet_l0", 64),
    _timm("inception_v3", 128),
    _timm("fasternet_t0"),
    _torchvision("shufflenet_v2_x0_5"),
    _torchvision("squeezenet1_1"),
)

CASES = (*TRANSFORMERS, *CONVOLUTIONAL)
