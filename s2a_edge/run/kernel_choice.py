"""Which form of the training step this process runs."""

from __future__ import annotations

from pathlib import Path

from s2a_edge.native import find_library, native_status
from s2a_edge.run.device_tensor import Provider
from s2a_edge.spec.bundle import Bundle
from s2a_edge.spec.errors import DeviceError
from s2a_edge.spec.kernels import Kernels


def kernel_library(bundle: Bundle, kernels: Kernels, provider: Provider) -> Path | None:
    """The library to load, compiled now if need be; None: the portable form runs.

    Args:
        bundle: what will run.
        kernels: ``auto`` takes what there is.
        provider: the kernels are the CPU's.

    Raises:
        DeviceError: ``native`` is asked for and cannot be had; says why.
    """
    if kernels == "portable":
        return None
    if provider == "cpu" and bundle.has_native:
        found = find_library()
        if found is not None or kernels == "auto":
            return found
        reason = native_status().reason
    elif kernels == "auto":
        return None
    else:
        reason = "a bundle without such a form" if provider == "cpu" else f"provider {provider}"
    raise DeviceError(where="--kernels native",
                      expected="a training step with kernels in C, for the CPU", got=reason,
                      todo="mend that, or use --kernels portable")


__all__ = ["kernel_library"]
