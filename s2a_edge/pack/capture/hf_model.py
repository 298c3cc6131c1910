"""Backbones from transformers: a local folder, or a ``config.json`` alone (random weights)."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from s2a_edge.pack.capture.captured import DEFAULT_TOKENS, tokens_note
from s2a_edge.pack.capture.timm_model import define_torchvision_schemas
from s2a_edge.pack.capture.torch_export import Sample, require
from s2a_edge.pack.capture.weights_file import load_weights
from s2a_edge.spec.errors import SourceError
from s2a_edge.spec.manifest import Preprocessing
from s2a_edge.spec.text_inputs import MASK_INPUT, TOKENS_INPUT, TYPES_INPUT

if TYPE_CHECKING:
    import torch

# Where the wrapper holds the model; taken off the names again after the export.
WRAPPED_AS = "model"

_BICUBIC = 3  # PIL's number, which image processor configs use
_IMAGENET_HALF = (0.5, 0.5, 0.5)
_DEFAULT_SIDE = 224


def open_hf(name: str, weights: Path | None, input_shape: tuple[int, ...] | None, seed: int,
            pool: str | None = None,
            ) -> tuple[torch.nn.Module, Sample, Preprocessing | None, tuple[str, ...]]:
    """The module in evaluation mode, its inputs, its preprocessing (None for text), and notes.

    The module wraps the model (see :data:`WRAPPED_AS`) and returns one tensor: the last hidden
    state where ``pool`` says what becomes of it, else the pooled output where the model has one.
    Of a model of images and texts (CLIP, SigLIP) the image tower is taken.

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
    if hasattr(model.config, "vision_config") and hasattr(model, "vision_model"):
        model = model.vision_model
    notes: tuple[str, ...] = ()
    preprocessing = None
    if hasattr(model.config, "image_size") or hasattr(model.config, "num_channels"):
        sample = _image(model.config, input_shape, where)
        shape = sample["pixel_values"][0]
        preprocessing = _preprocessing(path, (shape[1], shape[2]))
    else:
        sample, notes = _text(model, path, input_shape, where)
    return _one_output(torch, model.eval(), sample, pool), sample, preprocessing, notes


def _open_model(transformers: Any, path: Path, where: str, *, random: bool) -> Any:
    """AutoModel with its weights, or from its configuration alone."""
    options: dict[str, Any] = {"attn_implementation": "eager"}
    logging = transformers.utils.logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # a local file is read in no time
    try:
        if path.is_file() or random:
            config = transformers.AutoConfig.from_pretrained(path, local_files_only=True)
            return transformers.AutoModel.from_config(config, **options)
        return transformers.AutoModel.from_pretrained(path, local_files_only=True, **options)
    except (OSError, ValueError, KeyError) as error:
        raise SourceError(where=where, expected="a model that transformers can open",
                          got=str(error).strip().splitlines()[0][:300],
                          todo="check the folder's config.json and weights") from error
    finally:
        if shown:
            logging.enable_progress_bar()


def _image(config: Any, input_shape: tuple[int, ...] | None, where: str) -> Sample:
    size = getattr(config, "image_size", None) or _DEFAULT_SIDE
    side = (size, size) if isinstance(size, int) else tuple(size)
    shape = tuple(input_shape or (getattr(config, "num_channels", 3), *side))
    if len(shape) != 3:
        raise SourceError(where=f"--input of {where}", expected="channels and image size, such as "
                          "3x224x224", got="x".join(map(str, shape)), todo="correct the flag")
    return {"pixel_values": (shape, "float32")}


def _text(model: Any, path: Path, input_shape: tuple[int, ...] | None, where: str,
          ) -> tuple[Sample, tuple[str, ...]]:
    """Inputs [tokens], int64: what the tokenizer's configuration names, or ids and mask."""
    longest = int(getattr(model.config, "max_position_embeddings", 0) or DEFAULT_TOKENS)
    shape = tuple(input_shape or (min(DEFAULT_TOKENS, longest),))
    if len(shape) != 1 or shape[0] > longest:
        raise SourceError(where=f"--input of {where}",
                          expected=f"a number of tokens up to {longest}",
                          got="x".join(map(str, shape)),
                          todo=f"give one number, such as --input {min(DEFAULT_TOKENS, longest)}")
    file = (path if path.is_dir() else path.parent) / "tokenizer_config.json"
    config: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    names = [TOKENS_INPUT, MASK_INPUT]
    if TYPES_INPUT in config.get("model_input_names", ()):
        names.append(TYPES_INPUT)
    taken = inspect.signature(model.forward).parameters
    notes = () if input_shape is not None else (tokens_note(shape[0]),)
    return {name: (shape, "int64") for name in names if name in taken}, notes


def _one_output(torch: Any, model: Any, sample: Sample, pool: str | None) -> torch.nn.Module:
    """A module whose output is the pooled vector, or the hidden states, and nothing else."""
    names = list(sample)

    class Features(torch.nn.Module):  # type: ignore[misc]  # torch is loaded lazily, hence Any
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *inputs: Any) -> Any:
            out = self.model(**dict(zip(names, inputs, strict=True)))
            pooled = getattr(out, "pooler_output", None) if pool is None else None
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
