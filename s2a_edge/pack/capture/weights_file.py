"""Weights from ``.safetensors`` or ``.pth`` files, into a PyTorch module."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from s2a_edge.spec.errors import SourceError

if TYPE_CHECKING:
    import torch

_WRAPPERS = ("state_dict", "model", "model_state_dict", "state_dict_ema", "module")
_LISTED = 5


def load_weights(module: torch.nn.Module, path: Path, ignore: tuple[str, ...] = ()) -> None:
    """Loads a state dict into ``module``, in place.

    Args:
        module: what the weights are for.
        path: ``.safetensors``, ``.pth``, ``.pt`` or ``.bin``. Pickled code is never executed.
        ignore: prefixes of names in the file that the backbone does without (its classifier).

    Raises:
        SourceError: if the file cannot be read, or names or shapes differ; they are listed.
    """
    state = {_plain(name): tensor for name, tensor in _read(path).items()}
    state = {k: v for k, v in state.items() if not k.startswith(ignore)} if ignore else state
    own = module.state_dict()
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in state if k not in own]
    shapes = [f"{k} {list(state[k].shape)} for {list(own[k].shape)}" for k in own
              if k in state and state[k].shape != own[k].shape]
    problems = [f"{label}: {_some(names)}" for label, names in
                (("missing", missing), ("unexpected", unexpected), ("shape", shapes)) if names]
    if problems:
        raise SourceError(where=f"--weights {path}",
                          expected=f"the {len(own)} tensors of the model", got="; ".join(problems),
                          todo="check that the weights belong to this model")
    module.load_state_dict(state, strict=False)


def _plain(name: str) -> str:
    return name.removeprefix("module.")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def _read(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise SourceError(where=f"--weights {path}", expected="a weights file",
                          got="no such file", todo="check the path")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in (".pth", ".pt", ".bin"):
        return _read_torch(path)
    raise SourceError(where=f"--weights {path}", expected=".safetensors, .pth, .pt or .bin",
                      got=path.suffix or "no suffix",
                      todo="an .onnx file is a SOURCE of its own: pack it directly"
                      if path.suffix == ".onnx" else "convert it to .safetensors")


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error


def _read_torch(path: Path) -> dict[str, torch.Tensor]:
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols, before the error below
            data: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, KeyError, ValueError) as error:
        raise _unreadable(path, error) from error
    for key in _WRAPPERS:
        if isinstance(data, dict) and isinstance(data.get(key), dict):
            data = data[key]
    if not isinstance(data, dict) or not all(isinstance(v, torch.Tensor) for v in data.values()):
        raise SourceError(where=f"--weights {path}", expected="a state dict of tensors",
                          got=type(data).__name__, todo="save model.state_dict() as .safetensors")
    return data


def _unreadable(path: Path, error: BaseException) -> SourceError:
    text = str(error).strip().splitlines()
    return SourceError(where=f"--weights {path}", expected="a file of plain tensors",
                       got=text[0][:200] if text else type(error).__name__,
                       todo="save model.state_dict() as .safetensors")
