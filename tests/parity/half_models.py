"""Backbones of full width and reduced depth, with drawn weights, for errors of half precision."""

from __future__ import annotations

import torch
from torch import nn

from s2a_edge.pack.capture.timm_model import define_torchvision_schemas


def vit_s() -> nn.Module:
    """ViT-S/16 of 4 blocks, 49 tokens and the class token."""
    return _drawn("vit_s", (3, 112, 112))


def resnet() -> nn.Module:
    """ResNet-50's four stages, one bottleneck each."""
    return _drawn("resnet", (3, 64, 64))


def _drawn(kind: str, shape: tuple[int, int, int]) -> nn.Module:
    define_torchvision_schemas()
    import timm
    from timm.models.resnet import Bottleneck, ResNet

    torch.manual_seed(0)
    module: nn.Module
    if kind == "vit_s":
        module = timm.create_model("vit_small_patch16_224", depth=4, img_size=shape[1],
                                   num_classes=0)
    else:
        module = ResNet(Bottleneck, layers=(1, 1, 1, 1),  # type: ignore[arg-type]  # a class
                        num_classes=0, zero_init_last=False)
    module.input_shape = shape  # type: ignore[assignment]  # what a factory's module says
    return module.eval()
