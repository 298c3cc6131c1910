"""Backbones from timm, without their classifier (``num_classes=0``: pooled features)."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from s2a_edge.pack.capture.torch_export import require
from s2a_edge.pack.capture.weights_file import load_weights
from s2a_edge.spec.errors import SourceError
from s2a_edge.spec.manifest import Preprocessing

if TYPE_CHECKING:
    import torch


def define_torchvision_schemas() -> None:
    """Defines two operators that a torchvision without compiled operators lacks.

    timm and transformers import torchvision, whose import fails where ``torchvision::nms`` has
    no schema. No model captured here calls them.
    """
    import torch

    library: Any = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]  # torch leaves it untyped
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _KEPT_LIBRARIES.append(library)


# A library's definitions go away with the object.
_KEPT_LIBRARIES: list[Any] = []


def open_timm(name: str, weights: Path | None, input_shape: tuple[int, ...] | None, seed: int,
              ) -> tuple[torch.nn.Module, tuple[int, ...], Preprocessing]:
    """The module in evaluation mode, its input [C, H, W] and its preprocessing.

    Without ``weights`` the module is random, from ``seed``: nothing is ever downloaded.

    Raises:
        SourceError: if timm is missing, the name unknown, or the weights do not fit.
    """
    where = f"timm:{name}"
    torch = require("torch", where)
    define_torchvision_schemas()
    timm = require("timm", where)
    if not timm.is_model(name.split(".")[0]):
        close = difflib.get_close_matches(name, timm.list_models(), n=5, cutoff=0.5)
        raise SourceError(where=where, expected="a model that timm knows",
                          got="no such model" + (f"; close: {', '.join(close)}" if close else ""),
                          todo="see timm.list_models()")
    torch.manual_seed(seed)
    module = timm.create_model(name, pretrained=False, num_classes=0,
                               **_image_size(timm, name, input_shape)).eval()
    if weights is not None:
        load_weights(module, weights, ignore=_classifier_prefixes(module))
    shape = input_shape or tuple(module.pretrained_cfg.get("input_size", (3, 224, 224)))
    return module, shape, _preprocessing(timm, module, shape)


def _image_size(timm: Any, name: str, input_shape: tuple[int, ...] | None) -> dict[str, Any]:
    """``img_size``, if the model is built for one image size and another one is asked for."""
    config = timm.get_pretrained_cfg(name)
    if input_shape is None or len(input_shape) != 3 or config is None:
        return {}
    other = tuple(config.input_size) != input_shape
    return {"img_size": input_shape[1:]} if other and config.fixed_input_size else {}


def _classifier_prefixes(module: Any) -> tuple[str, ...]:
    classifier = module.pretrained_cfg.get("classifier", ())
    names = (classifier,) if isinstance(classifier, str) else tuple(classifier or ())
    return tuple(f"{name}." for name in names)


def _preprocessing(timm: Any, module: torch.nn.Module, shape: tuple[int, ...]) -> Preprocessing:
    config = timm.data.resolve_data_config({"input_size": shape}, model=module)
    return Preprocessing(
        kind="image", size=(int(shape[1]), int(shape[2])), layout="NCHW", channels="RGB",
        scale=1 / 255, mean=tuple(config["mean"]), std=tuple(config["std"]),
        interpolation="bilinear" if config["interpolation"] == "bilinear" else "bicubic",
        crop_pct=float(config["crop_pct"]))
