"""Does a run fit its budget: asked before the first session, and again when the data is known."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from s2a_edge.run.data import DataSet
from s2a_edge.run.device_tensor import Provider
from s2a_edge.run.engine import constants_in_arena_bytes, usable_cores
from s2a_edge.run.headroom import Room
from s2a_edge.run.installed_runtime import runtime_name, runtime_version
from s2a_edge.run.metrics import evaluation_bytes
from s2a_edge.run.process_memory import read_memory
from s2a_edge.spec.budget import choose_micro_batch, does_not_fit
from s2a_edge.spec.bundle import Bundle
from s2a_edge.spec.errors import BudgetError
from s2a_edge.spec.kernels import Kernels
from s2a_edge.spec.machine import machine
from s2a_edge.spec.manifest import Manifest
from s2a_edge.spec.requirement import (
    LineKind,
    Requirement,
    RequirementLine,
    Setting,
    micro_batches,
    requirement,
    weights_bytes,
)
from s2a_edge.spec.units import KIB, MIB, format_bytes

LIBRARY_GROWTH_BYTES = 14 * MIB
"""Code of onnxruntime and Pillow that becomes resident only when sessions run and images load;
13.1 MiB were seen (onnxruntime 1.32, x86-64, a ViT-S on JPEG folders)."""

SESSION_SLACK_BYTES = 64 * KIB
"""What sessions keep in the shared arena besides the plan of the one that runs; a few hundred
bytes each were seen (onnxruntime 1.32), but the arena rounds, and a plan leaves nothing over."""


def measure_setting(
    provider: Provider, threads: int | None = None, *, evaluation: bool = True,
    cuda_context_bytes: int = 0,
) -> Setting:
    """What a requirement depends on here: call it before any session exists.

    Args:
        provider: what executes graphs.
        threads: of one operator; None: all usable cores.
        evaluation: whether there will be one.
        cuda_context_bytes: what CUDA took when it started; see :mod:`s2a_edge.run.device_memory`.

    Raises:
        DeviceError: the platform does not tell a process's memory.
    """
    return Setting(
        provider=provider,
        runtime_base_bytes=read_memory().rss_bytes + LIBRARY_GROWTH_BYTES,
        rehearsed_as=(machine(), runtime_name()),
        prefetch=provider != "cpu",
        threads=usable_cores() if threads is None else threads,
        onnxruntime=runtime_version(runtime_name()),
        evaluation=evaluation,
        cuda_context_bytes=cuda_context_bytes,
    )


def choose(
    manifest: Manifest,
    budget_bytes: int | None,
    micro_batch: int | None,
    setting: Setting,
    room: Room | None = None,
) -> Requirement:
    """The requirement of the wanted micro-batch, or else of the largest that fits.

    Args:
        manifest: of the bundle.
        budget_bytes: most memory the process may hold; None: no budget.
        micro_batch: the wanted one; None: any.
        setting: what else a requirement depends on.
        room: what is left around the process; None: not looked at.

    Raises:
        BudgetError: it does not fit; says what is missing.
        UsageError: the bundle has no graph of that micro-batch.
    """
    wanted = micro_batch
    if micro_batch is None and budget_bytes is not None:
        micro_batch = choose_micro_batch(manifest, budget_bytes, setting=setting)
    needed = requirement(manifest, micro_batch=micro_batch, setting=setting)
    _require(manifest, needed, budget_bytes, setting)
    if room is None or _missing_bytes(needed, room, setting) == 0:
        return needed
    smaller = (n for n in micro_batches(manifest) if wanted is None and n < needed.micro_batch)
    for batch in smaller:
        needed = requirement(manifest, micro_batch=batch, setting=setting)
        if _missing_bytes(needed, room, setting) == 0:
            return needed
    raise _no_room(needed, room, setting)


def _missing_bytes(needed: Requirement, room: Room, setting: Setting) -> int:
    """What the kernel would have to end processes for: mapped weights can be read again."""
    if setting.provider != "cpu":
        return 0  # which memory is the GPU's is known when it is taken: the guard looks then
    more_bytes = needed.total_bytes - needed.of_kind(LineKind.WEIGHTS) - read_memory().rss_bytes
    return max(0, more_bytes - room.free_bytes)


def _no_room(needed: Requirement, room: Room, setting: Setting) -> BudgetError:
    missing_bytes = _missing_bytes(needed, room, setting)
    return BudgetError(
        where=f"training with micro-batch {needed.micro_batch}",
        expected=f"{format_bytes(room.free_bytes + missing_bytes)} more than the process holds, "
        "and a headroom",
        got=f"{format_bytes(room.free_bytes)} left by {room.source} beside the headroom",
        todo="end other programs, raise that limit, or pack again with a smaller --micro-batch; "
        "--headroom 0 starts all the same",
        missing_bytes=missing_bytes,
    )


def choose_form(bundle: Bundle, budget_bytes: int | None, micro_batch: int | None,
                setting: Setting, kernels: Kernels, *, native: bool,
                room: Room | None = None) -> Requirement:
    """As :func:`choose`, and chooses the form of the step in ``bundle``.

    With ``native`` kernels at hand their form is taken, unless ``kernels`` leaves the choice and
    only the portable one fits: their plans differ by about one part in a hundred.

    Raises:
        BudgetError: it does not fit; says what is missing.
        UsageError: the bundle has no graph of that micro-batch.
    """
    bundle.choose_kernels(native=native)
    try:
        return choose(bundle.manifest, budget_bytes, micro_batch, setting, room)
    except BudgetError:
        if not native or kernels != "auto":
            raise
        bundle.choose_kernels(native=False)
        return choose(bundle.manifest, budget_bytes, micro_batch, setting, room)


def arena_limit(bundle: Bundle, needed: Requirement, provider: Provider) -> int:
    """Bytes to give the runtime's arena: the plan's, and what this runtime keeps there besides."""
    graphs = bundle.manifest.graphs
    train = next(graph for graph in graphs.train if graph.batch == needed.micro_batch)
    files = [bundle.file(graph.file) for graph in (graphs.eval, graphs.optimizer, train)
             if graph.file in needed.arenas]
    # A CUDA session's copy of the weights lies in its arena.
    copied_bytes = 0 if provider == "cpu" else weights_bytes(bundle.manifest)
    constants_bytes = constants_in_arena_bytes(files, provider)
    own_bytes = needed.arena_bytes - needed.pool_bytes
    return own_bytes + constants_bytes + copied_bytes + SESSION_SLACK_BYTES


def require_room_for_data(
    manifest: Manifest,
    micro_batch: int,
    budget_bytes: int | None,
    setting: Setting,
    data_sets: Iterable[DataSet],
) -> None:
    """Look at every sample, then ask again with what the data needs.

    Raises:
        DataError: samples cannot be used.
        BudgetError: it does not fit; says what is missing.
    """
    checks = [(data, data.check()) for data in data_sets]
    decode_bytes = max(check.decode_bytes for _, check in checks)
    held_bytes = sum(data.resident_bytes for data, _ in checks)
    figures_bytes = max(evaluation_bytes(manifest.task, len(data)) for data, _ in checks)
    figures_bytes *= setting.evaluation
    setting = dataclasses.replace(setting, decoded_image_bytes=decode_bytes)
    needed = requirement(manifest, micro_batch=micro_batch, setting=setting)
    held = RequirementLine(
        "data sets in memory", held_bytes, "measured on this device", LineKind.OTHER
    )
    figures = RequirementLine(
        "figures of an evaluation", figures_bytes, "planned", LineKind.OTHER
    )
    more = (held, figures) if figures_bytes else (held,)
    needed = dataclasses.replace(needed, lines=(*needed.lines, *more))
    _require(manifest, needed, budget_bytes, setting)


def _require(
    manifest: Manifest, needed: Requirement, budget_bytes: int | None, setting: Setting
) -> None:
    if budget_bytes is not None and not needed.verdict(budget_bytes).fits:
        raise does_not_fit(manifest, needed, budget_bytes, setting=setting)
