"""Kernels in C for what a training step adds to the backbone: codecs and three gradients.

ONNX Runtime has no operator for "round, clamp, pack four codes into a word", so the portable graph
takes six nodes and as many passes over memory. Here each is one pass. The portable graph stays the
reference, and what runs where there is no compiler; both are in a bundle.
"""

from __future__ import annotations

from s2a_edge.native.library import NATIVE_DOMAIN, NativeStatus, find_library, native_status

__all__ = ["NATIVE_DOMAIN", "NativeStatus", "find_library", "native_status"]
