"""The onnxruntime that is installed: its version, its providers, and whether they suffice."""

from __future__ import annotations

import re

import onnxruntime as ort

from s2a_edge.run.device_tensor import Provider
from s2a_edge.spec.errors import DeviceError, InternalError
from s2a_edge.spec.manifest import Compat

MIN_ONNXRUNTIME = "1.19"


def require_runtime(provider: Provider) -> None:
    """Check version and provider of the installed onnxruntime.

    Raises:
        DeviceError: too old, or built without the provider.
    """
    if runtime_version(ort.__version__) < runtime_version(MIN_ONNXRUNTIME):
        raise _too_old(MIN_ONNXRUNTIME)
    wanted = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}[provider]
    available = ort.get_available_providers()
    if wanted not in available:
        raise DeviceError(
            where=f"onnxruntime {ort.__version__}",
            expected=wanted,
            got=", ".join(available),
            todo="install the onnxruntime build for this board, or use the cpu provider",
        )


def require_compatible(compat: Compat, provider: Provider) -> None:
    """Check the installed onnxruntime against what a bundle was packed for.

    Raises:
        DeviceError: it is too old, or the bundle does not run on the provider.
    """
    require_runtime(provider)
    if runtime_version(ort.__version__) < runtime_version(compat.onnxruntime_min):
        raise _too_old(compat.onnxruntime_min)
    if provider not in compat.providers:
        raise DeviceError(
            where="bundle",
            expected=f"one that runs on the {provider} provider",
            got=f"one for {', '.join(compat.providers)}"
            + (f": {compat.lacking}" if compat.lacking else ""),
            todo="train with a provider that it names, or pack again",
        )


def runtime_version(text: str) -> tuple[int, int]:
    """Major and minor number of a version: ``"1.22.1+cu126"`` -> ``(1, 22)``."""
    numbers = re.match(r"(\d+)\.(\d+)", text)
    if numbers is None:
        raise InternalError(
            where="onnxruntime version", expected="major.minor", got=text, todo="report this"
        )
    return int(numbers[1]), int(numbers[2])


def runtime_name() -> str:
    """Version of the installed onnxruntime, as it names itself."""
    return str(ort.__version__)


def _too_old(wanted: str) -> DeviceError:
    return DeviceError(
        where="onnxruntime",
        expected=f"version {wanted} or newer",
        got=str(ort.__version__),
        todo="install a newer onnxruntime",
    )
