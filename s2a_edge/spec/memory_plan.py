"""The planned memory of one graph, and what was measured when the graph was rehearsed.

Both stand in ``manifest.json`` beside each graph. A *plan* is computed from lifetimes; *evidence*
is measured in a fresh process on the packing host. Neither is ever presented as the other. All
sizes are bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Annotated

from s2a_edge.spec.strict_json import Length, Span

MAX_BYTES = 2**48  # above any board or host; keeps sums far from int64's end
MAX_NODES = 10_000_000
MAX_NAME_CHARS = 1024
THREAD_BYTES = 64 * 2**10  # scratch of one thread inside a convolution (onnxruntime, CPU)

# onnxruntime, first and last version: threads that share out the images of a convolution each take
# all patches of an image, not a tile of them at a time. (1.23.0 itself does not yet.)
WHOLE_IMAGE_VERSIONS = ((1, 23), (1, 26))

NOT_MEASURED = 0
"""As ``arena_measured_bytes``: the graph itself did not run on the packing host."""

ByteCount = Annotated[int, Span(0, MAX_BYTES)]
Name = Annotated[str, Length(1, MAX_NAME_CHARS)]


class MemoryKind(str, Enum):
    """What a live value is for."""

    SAVED = "saved"  # kept by the forward for the backward, as stored (packed codes, scales)
    WORKING = "working"  # temporaries of forward and backward, decoded values included
    GRADIENTS = "gradients"  # accumulators and gradients of trainables
    INPUTS = "inputs"  # data, targets, parameters fed to the graph
    CONSTANTS = "constants"  # small inline constants, graph outputs and the rest


@dataclass(frozen=True)
class MemoryPlan:
    """Planned memory of one graph, executed in file order.

    Attributes:
        liveness_peak_bytes: the most bytes alive at once in the planned order.
        lower_bound_bytes: no order and no allocator can need less than this.
        arena_bytes: what values and kernels need: the limit to give the runtime's arena
            (``max_mem``), and the pool.
        peak_node: name of the node at which the peak is reached.
        at_peak: bytes alive there by kind.
        saved_bytes: all saved values together, as stored.
        node_count: nodes of the graph.
        threads: threads of one operator that the plan is for; each one more may take
            ``THREAD_BYTES`` more.
        whole_image_arena_bytes: ``arena_bytes`` for :data:`WHOLE_IMAGE_VERSIONS`.
        whole_image_thread_bytes: what each thread more may take there.
        pool_bytes: the part of ``arena_bytes`` in which values have planned places (see
            :mod:`s2a_edge.spec.pool_ports`); the runtime's arena gets the rest. 0: no pool.
    """

    liveness_peak_bytes: ByteCount
    lower_bound_bytes: ByteCount
    arena_bytes: ByteCount
    peak_node: Annotated[str, Length(0, MAX_NAME_CHARS)]
    at_peak: dict[MemoryKind, ByteCount]
    saved_bytes: ByteCount
    node_count: Annotated[int, Span(0, MAX_NODES)]
    threads: Annotated[int, Span(1, 4096)]
    whole_image_arena_bytes: ByteCount
    whole_image_thread_bytes: ByteCount
    pool_bytes: ByteCount = 0

    def arena_limit_bytes(
        self, threads: int | None = None, onnxruntime: tuple[int, int] | None = None
    ) -> int:
        """``arena_bytes`` for so many threads and this version of onnxruntime (CPU).

        Args:
            threads: of one operator; None: as planned.
            onnxruntime: major and minor number; None: one that the plan is for.
        """
        more_threads = max(0, (threads or 0) - self.threads)
        first, last = WHOLE_IMAGE_VERSIONS
        if onnxruntime is not None and first <= onnxruntime <= last:
            return self.whole_image_arena_bytes + more_threads * self.whole_image_thread_bytes
        return self.arena_bytes + more_threads * THREAD_BYTES


@dataclass(frozen=True)
class GradientError:
    """Relative error of the gradients against the uncompressed step; 0.01 = one percent.

    Attributes:
        total: of all trainables' gradients as one vector.
        cosine: of the angle between the two vectors.
        max: the largest of the trainables' own errors.
        median: their median.
        worst: name of the trainable with the largest.
        each: by trainable.
    """

    total: Annotated[float, Span(0, 1e30)]
    cosine: Annotated[float, Span(-1.001, 1.001)]
    max: Annotated[float, Span(0, 1e30)]
    median: Annotated[float, Span(0, 1e30)]
    worst: Name
    each: dict[Name, Annotated[float, Span(0, 1e30)]]


@dataclass(frozen=True)
class Evidence:
    """What was measured when a graph ran at pack time, in a process of its own.

    Attributes:
        machine: the host in words: processor, cores.
        onnxruntime: version that ran it.
        arena_measured_bytes: the smallest arena limit under which it was seen to run;
            :data:`NOT_MEASURED` where a float32 twin ran in its place (``--precision``).
        process_peak_bytes: peak resident memory of the process, mapped weights left out (a budget
            counts them once, as the size of their file).
        runtime_base_bytes: the same before the session existed, library code included.
        session_bytes: what creating the session added, before the first run.
        step_ms: median duration of one run, in milliseconds.
        n: number of runs behind ``step_ms``.
        gradient_error: against the uncompressed step; None for graphs without gradients.
    """

    machine: Name
    onnxruntime: Name
    arena_measured_bytes: ByteCount
    process_peak_bytes: ByteCount
    runtime_base_bytes: ByteCount
    session_bytes: ByteCount
    step_ms: Annotated[float, Span(0, 1e12)]
    n: Annotated[int, Span(0, 1_000_000)]
    gradient_error: GradientError | None
