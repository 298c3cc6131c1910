"""ONNX Runtime, set up so that a planned peak is the real one, under a hard arena limit.

The only module of the package that makes sessions. Every setting below decides whether low-bit
saves save anything: nodes run in file order, nothing is fused, merged, prepacked or kept for
reuse, and all sessions of the process allocate from one arena with a limit.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from s2a_edge.run.device_tensor import Array, DeviceTensor, Provider
from s2a_edge.run.graph import FATAL_ONLY, Graph, RunControl
from s2a_edge.run.huge_pages import advise_huge_pages
from s2a_edge.run.inline_tensors import inline_tensors
from s2a_edge.run.installed_runtime import require_runtime, runtime_version
from s2a_edge.run.placement import FALLBACK_REFUSED, left_to_the_cpu, said_while
from s2a_edge.run.pool import Pool
from s2a_edge.run.process_arena import register_arena
from s2a_edge.run.runtime_errors import RUNTIME_ERRORS, load_error, run_error
from s2a_edge.spec.errors import DeviceError, InternalError
from s2a_edge.spec.onnx_smallest import negation_model
from s2a_edge.spec.units import MIB

# The arena of a smaller limit is not worth pages of 2 MiB.
LEAST_HUGE_BYTES = 16 * MIB
# Versions before this one put copies of a graph's inline constants into the arena.
CONSTANTS_OUTSIDE_ARENA = "1.24"


class Engine:
    """One provider, one arena with a hard limit, any number of graphs.

    Args:
        arena_limit_bytes: most bytes the runtime's arena may hold; None: no limit. On CUDA it is
            the limit of each session's device memory.
        pool_limit_bytes: most bytes of the values that graphs keep in a pool beside the arena
            (:mod:`s2a_edge.run.pool`); None: no limit.
        provider: ``"cpu"`` or ``"cuda"``.
        threads: threads of one operator; None: the cores this process may use.
        kernels: the library of ``s2a_edge.native``, for graphs that need it.
        weights: frozen tensors by initializer name, shared by all graphs of the engine instead of
            each mapping the weights file for itself (CPU only; CUDA copies them to the device).
        profile: start of the names of files that the runtime writes the times of all nodes to;
            None: none. The profiler takes memory of its own.

    Raises:
        DeviceError: onnxruntime is too old or lacks the provider.
        InternalError: the process already has an arena with another limit and this onnxruntime
            (before 1.23) cannot replace it.
    """

    def __init__(
        self,
        *,
        arena_limit_bytes: int | None,
        pool_limit_bytes: int | None = None,
        provider: Provider = "cpu",
        threads: int | None = None,
        weights: Mapping[str, Array] | None = None,
        kernels: Path | None = None,
        profile: Path | None = None,
    ) -> None:
        require_runtime(provider)
        self._kernels = kernels
        self._profile = profile
        self.arena_limit_bytes = arena_limit_bytes
        self.provider: Provider = provider
        self.threads = usable_cores() if threads is None else threads
        self.control = RunControl()
        self.pool = Pool(provider, pool_limit_bytes)
        self._weights = {
            name: ort.OrtValue.ortvalue_from_numpy(array)
            for name, array in (weights or {}).items()
            if provider == "cpu"
        }
        # The OrtValues above point into these arrays.
        self._weight_arrays = dict(weights or {})
        self.huge_page_bytes = 0
        """Bytes of the arena for which the kernel was asked for pages of 2 MiB, and agreed."""
        self._has_run = False
        self.control.before_first_run = self._before_first_run
        if provider == "cpu" and arena_limit_bytes is not None:
            register_arena(arena_limit_bytes)

    def _before_first_run(self) -> None:
        self._has_run = True
        limit_bytes = self.arena_limit_bytes
        if self.provider == "cpu" and limit_bytes is not None and limit_bytes >= LEAST_HUGE_BYTES:
            self.huge_page_bytes = advise_huge_pages(
                self._map_arena, least_bytes=limit_bytes // 2)

    def load(self, path: Path) -> Graph:
        """Make a session of a graph file; its external data is read from the same folder.

        Raises:
            BundleError: the file is missing or is no graph this onnxruntime can run.
            BudgetError: the weights alone exceed the arena.
            DeviceError: the provider could not be started.
            InternalError: a graph of this engine has run. What a session keeps in an arena that is
                mapped already makes the runtime's count of it pass the limit, and from then on
                the limit is void (an unsigned difference in its arena; 1.19 to 1.32).
        """
        if self._has_run and self.provider == "cpu" and self.arena_limit_bytes is not None:
            raise InternalError(
                where=path.name,
                expected="all graphs to be loaded before the first of them runs",
                got="one more",
                todo="report this",
            )
        options = self._session_options()
        given = {**self._constants(path), **self._weights}
        for name, value in given.items():
            options.add_initializer(name, value)
        try:
            session = ort.InferenceSession(str(path), options, providers=self._providers())
        except RUNTIME_ERRORS as error:
            if FALLBACK_REFUSED in str(error):
                raise self._without_kernel(path, given) from error
            raise load_error(error, path) from error
        if self.provider == "cuda" and session.get_providers()[0] != "CUDAExecutionProvider":
            raise DeviceError(
                where=path.name,
                expected="the CUDA provider",
                got="onnxruntime fell back to the CPU",
                todo="check that the installed onnxruntime-gpu fits this CUDA and cuDNN",
            )
        return Graph(path.stem, session, self.control, self.pool, kept=given)

    def tensor(self, shape: tuple[int, ...], dtype: Any = np.float32) -> DeviceTensor:
        """A zeroed tensor where the engine's graphs can use it in place."""
        return DeviceTensor(shape, dtype, self.provider)

    def _without_kernel(self, path: Path, given: Mapping[str, Any]) -> DeviceError:
        """Names the node that the provider has no kernel for: the session is made again, aloud."""
        options = self._session_options()
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "0")
        options.log_severity_level = 0
        for name, value in given.items():
            options.add_initializer(name, value)
        said = said_while(
            lambda: ort.InferenceSession(str(path), options, providers=self._providers()))
        return DeviceError(
            where=path.name,
            expected=f"a CUDA kernel for every node in onnxruntime {ort.__version__}",
            got=f"none for {left_to_the_cpu(said)}",
            todo="use --engine cpu, or install a newer onnxruntime-gpu",
        )

    def _map_arena(self) -> None:
        """Make the runtime map its arena, with nothing in it yet."""
        options = self._session_options()
        options.intra_op_num_threads = 1  # the stacks of threads are not the arena
        model = negation_model()
        try:
            session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
            session.run(None, {"x": np.zeros(1, np.float32)})
        except RUNTIME_ERRORS as error:
            raise run_error(error, "arena") from error

    def _constants(self, path: Path) -> dict[str, Any]:
        """A graph's inline initializers where the runtime would copy them into the arena."""
        version = runtime_version(ort.__version__)
        if self.provider != "cpu" or version >= runtime_version(CONSTANTS_OUTSIDE_ARENA):
            return {}
        tensors = inline_tensors(path)
        return {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in tensors.items()}

    def _session_options(self) -> Any:
        options = ort.SessionOptions()
        options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.enable_mem_reuse = False
        options.enable_mem_pattern = False
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = FATAL_ONLY
        entries = {"session.disable_prepacking": "1", "session.disable_quant_qdq": "1"}
        if self.provider == "cuda":
            entries["session.disable_cpu_ep_fallback"] = "1"
        elif self.arena_limit_bytes is not None:
            entries["session.use_env_allocators"] = "1"
        for key, value in entries.items():
            options.add_session_config_entry(key, value)
        if self._profile is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(self._profile)
        if self._kernels is not None:
            options.register_custom_ops_library(str(self._kernels))
        return options

    def _providers(self) -> list[Any]:
        if self.provider == "cpu":
            return ["CPUExecutionProvider"]
        options = {
            "device_id": "0",
            "arena_extend_strategy": "kSameAsRequested",
            "cudnn_conv_use_max_workspace": "0",
            "use_tf32": "0",
        }
        if self.arena_limit_bytes is not None:
            options["gpu_mem_limit"] = str(self.arena_limit_bytes)
        return [("CUDAExecutionProvider", options)]


def constants_in_arena_bytes(graphs: Iterable[Path], provider: Provider = "cpu") -> int:
    """What the constants inside graph files take from the arena, at most; whole MiB.

    On CUDA a session copies them into its arena, which plans leave out; a file is larger than the
    constants it holds. On the CPU they are beside the arena in every version: where they would not
    be, :meth:`Engine.load` hands them over from outside.

    Args:
        graphs: files of all sessions that share the arena.
        provider: whose arena.
    """
    if provider == "cpu":
        return 0
    files_bytes = sum(path.stat().st_size for path in graphs)
    return -(-files_bytes // MIB) * MIB


def usable_cores() -> int:
    """Cores this process may run on (affinity and containers are respected)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
