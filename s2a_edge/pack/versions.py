"""Versions of the packages that take part in a pack, for the manifest."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def versions() -> dict[str, str]:
    """Versions of what took part in a pack."""
    found = {}
    for name in ("onnx", "onnx-ir", "onnxruntime", "onnxscript", "numpy", "torch"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
