"""Backbones from transformers: a local folder, or a ``config.json`` alone (random weights)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from s2a_edge.pack.capture.timm_model import define_torchvision_schemas
from s2a_edge.pack.capture.torch_export import Sample, require
from s2a_edge.pack.capture.weights_file import load_weights
from s2a_edge.spec.errors import SourceError
from s2a_edge.spec.manifest import Preprocessing

if TYPE_CHECKING:
    import torch

# Where the wrapper holds the model; taken off the names again after the export.
WRAPPED_AS = "model"

_BICUBIC = 3  # PIL's number, which image processor configs use
_IMAGENET_HALF = (0.5, 0.5, 0.5)
_DEFAULT_TOKENS = 128


def open_hf(name: str, weights: Path | None, input_shape: tuple[int, ...] | None, seed: int,
            ) -> tuple[torch.nn.Module, Sample, Preprocessing | None]:
    """The module in evaluation mode, its inputs, and its preprocessing (None for text).

    The module wraps the model (see :data:`WRAPPED_AS`) and returns one tensor: the pooled output
    where the model has one, else the last hidden state.

    Raises:
        SourceError: if transformers or the folder is missing, or the weights do not fit.
    """
    where = f"hf:{name}"
    torch = require("torch", where)
    define_torchvision_schemas()
    transformers = require("transformers", where)
    path = Path(name)
    if not path.exists():
        raise SourceError(where=where, expected="a folder or a config.json on this machine",
                          got="no such path", todo="download the model first; nothing is fetched "
                          "here")
    torch.manual_seed(seed)
    model = _open_model(transformers, path, where, random=weights is not None)
    if weights is not None:
        load_weights(model, weights)
    config = model.config
    sample = _sample(config, input_shape)
    preprocessing = None
    if "pixel_values" in sample:
        shape = sample["pixel_values"][0]
        preprocessing = _preprocessing(path, (shape[1], shape[2]))
    return _one_output(torch, model.eval(), sample), sample, preprocessing


def _open_model(transformers: Any, path: Path, where: str, *, random: bool) -> Any:
    """AutoModel with its weights, or from its configuration alone."""
    options: dict[str, Any] = {"attn_implementation": "eager"}
    try:
        if path.is_file() or random:
            config = transformers.AutoConfig.from_pretrained(path, local_files_only=True)
            return transformers.AutoModel.from_config(config, **options)
        return transformers.AutoModel.from_pretrained(path, local_files_only=True, **options)
    except (OSError, ValueError, KeyError) as error:
        raise SourceError(where=where, expected="a model that transformers can open",
                          got=str(error).strip().splitlines()[0][:300],
                          todo="check the folder's config.json and weights") from error


def _sample(config: Any, input_shape: tuple[int, ...] | None) -> Sample:
    size = getattr(config, "image_size", None)
    if size is not None:
        side = (size, size) if isinstance(size, int) else tuple(size)
        shape = input_shape or (getattr(config, "num_channels", 3), *side)
        return {"pixel_values": (tuple(shape), "float32")}
    tokens = input_shape or (_DEFAULT_TOKENS,)
    return {"input_ids": (tuple(tokens), "int64"), "attention_mask": (tuple(tokens), "int64")}


def _one_output(torch: Any, model: Any, sample: Sample) -> torch.nn.Module:
    """A module whose output is the pooled vector, or the hidden states, and nothing else."""
    names = list(sample)

    class Features(torch.nn.Module):  # type: ignore[misc]  # torch is loaded lazily, hence Any
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *inputs: Any) -> Any:
            out = self.model(**dict(zip(names, inputs, strict=True)))
            pooled = getattr(out, "pooler_output", None)
            return out.last_hidden_state if pooled is None else pooled

    return Features().eval()  # type: ignore[no-any-return]  # torch is loaded lazily, hence Any


def _preprocessing(path: Path, size: tuple[int, int]) -> Preprocessing:
    """From ``preprocessor_config.json`` beside the weights; else the library's usual values."""
    file = (path if path.is_dir() else path.parent) / "preprocessor_config.json"
    config: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    mean = tuple(config.get("image_mean") or _IMAGENET_HALF)
    std = tuple(config.get("image_std") or _IMAGENET_HALF)
    crop = config.get("crop_size") if config.get("do_center_crop") else None
    resize = config.get("size", {})
    edge = resize.get("shortest_edge") if isinstance(resize, dict) else resize
    side = crop.get("height") if isinstance(crop, dict) else crop
    crop_pct = min(1.0, side / edge) if side and edge else 1.0
    bicubic = config.get("resample", 2) == _BICUBIC
    return Preprocessing(
        kind="image", size=size, layout="NCHW", channels="RGB",
        scale=float(config.get("rescale_factor", 1 / 255)), mean=mean, std=std,
        interpolation="bicubic" if bicubic else "bilinear", crop_pct=crop_pct)
