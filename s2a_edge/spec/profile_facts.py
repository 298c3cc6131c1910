"""What a device profile says: sections of facts, each with its provenance.

What is not known is None. The files are read by :mod:`s2a_edge.spec.profile_toml`, budgets are
derived by :mod:`s2a_edge.spec.device_profile`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Fact(Generic[T]):
    """One value with its provenance.

    Attributes:
        value: the value; sizes are in bytes.
        source: where it comes from, in words.
        date: when it was taken from there, ``YYYY-MM-DD``.
        note: what else a reader must know, or None.
        carried_over_from: the device on which it was observed, where that is not this one.
    """

    value: T
    source: str
    date: str
    note: str | None = None
    carried_over_from: str | None = None


@dataclass(frozen=True)
class MemoryFacts:
    """Memory of a device; one pool for CPU and GPU on a Jetson.

    Attributes:
        capacity_bytes: as sold.
        mem_total_bytes: typical ``MemTotal`` of Linux, after the firmware's carve-outs.
        reserve_headless_bytes: in use when idle, without a desktop.
        desktop_extra_bytes: what a desktop session adds to that.
        bandwidth_gb_per_s: peak, 10**9 bytes per second.
        bandwidth_super_gb_per_s: the same in Super mode.
    """

    capacity_bytes: Fact[int] | None = None
    mem_total_bytes: Fact[int] | None = None
    reserve_headless_bytes: Fact[int] | None = None
    desktop_extra_bytes: Fact[int] | None = None
    bandwidth_gb_per_s: Fact[float] | None = None
    bandwidth_super_gb_per_s: Fact[float] | None = None


@dataclass(frozen=True)
class OverheadFacts:
    """Memory that the accelerator's software takes, as (low, high) of what was reported.

    Attributes:
        cuda_context_bytes: CUDA context with cuDNN and cuBLAS.
        ort_cuda_session_bytes: an ONNX Runtime session on CUDA, its context included.
    """

    cuda_context_bytes: Fact[tuple[int, int]] | None = None
    ort_cuda_session_bytes: Fact[tuple[int, int]] | None = None


@dataclass(frozen=True)
class GpuFacts:
    """The GPU: architecture, compute capability (87 = 8.7), size, peak rate."""

    arch: Fact[str] | None = None
    sm: Fact[int] | None = None
    cuda_cores: Fact[int] | None = None
    fp16_tflops: Fact[float] | None = None


@dataclass(frozen=True)
class CpuFacts:
    """The CPU: number of cores and their kind."""

    cores: Fact[int] | None = None
    model: Fact[str] | None = None


@dataclass(frozen=True)
class PowerFacts:
    """Power in watts: range of the modes, the most in Super mode, names of modes."""

    min_w: Fact[float] | None = None
    max_w: Fact[float] | None = None
    super_max_w: Fact[float] | None = None
    modes: Fact[tuple[str, ...]] | None = None


@dataclass(frozen=True)
class SoftwareFacts:
    """Newest software: JetPack, its Python and CUDA, the ONNX Runtime builds that exist for it."""

    jetpack: Fact[str] | None = None
    python: Fact[str] | None = None
    cuda: Fact[str] | None = None
    onnxruntime: Fact[str] | None = None


@dataclass(frozen=True)
class DetectionFacts:
    """How a board is recognized.

    Attributes:
        parts: part numbers, ``p3767-0003``; one without SKU (``p3310``) stands for all SKUs.
        soc: name in the device tree, ``tegra234``.
        model_contains: parts of ``/proc/device-tree/model``, the weakest evidence.
    """

    parts: Fact[tuple[str, ...]] | None = None
    soc: Fact[str] | None = None
    model_contains: Fact[tuple[str, ...]] | None = None


@dataclass(frozen=True)
class DeviceProfile:
    """A kind of device to plan for; ``profile_toml`` shows the file.

    Attributes:
        name: what ``--device`` takes, ``orin-nano-8gb``.
        title: its full name.
        kind: ``jetson``; ``board`` for any other; ``host`` for whatever machine this runs on.
        can_train: whether the runtime can run there; False is *plan-only*.
        can_train_reason: why, in one sentence.
    """

    name: str
    title: str
    kind: str
    can_train: bool
    can_train_reason: str
    memory: MemoryFacts = MemoryFacts()
    overheads: OverheadFacts = OverheadFacts()
    gpu: GpuFacts = GpuFacts()
    cpu: CpuFacts = CpuFacts()
    power: PowerFacts = PowerFacts()
    software: SoftwareFacts = SoftwareFacts()
    detection: DetectionFacts = DetectionFacts()

    def facts(self) -> Iterator[tuple[str, Fact[Any]]]:
        """Every known fact with its path (``memory.mem_total_bytes``), in the schema's order."""
        for section in dataclasses.fields(self):
            facts = getattr(self, section.name)
            for entry in dataclasses.fields(facts) if dataclasses.is_dataclass(facts) else ():
                fact = getattr(facts, entry.name)
                if fact is not None:
                    yield f"{section.name}.{entry.name}", fact

    def as_dict(self) -> dict[str, object]:
        """The profile as JSON-ready values; facts keep their provenance, unknown ones are null."""
        return dataclasses.asdict(self)
