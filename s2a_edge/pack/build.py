"""``pack``: capture, compile, plan, emit, rehearse, bundle.

Everything is written to a temporary folder beside the result; the result appears only when the
rehearsal has shown that the plan holds.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from s2a_edge.pack.capture import Captured
from s2a_edge.pack.cheaper import measured_changes
from s2a_edge.pack.compile import Compiled, compile_backbone
from s2a_edge.pack.fit_budget import with_arena
from s2a_edge.pack.network import capture_source
from s2a_edge.pack.options import PackOptions
from s2a_edge.pack.search.record import search_record
from s2a_edge.pack.search.search import Search
from s2a_edge.pack.staged_files import Stage, StagedFiles
from s2a_edge.spec.budget import does_not_fit
from s2a_edge.spec.bundle_write import write_bundle
from s2a_edge.spec.errors import StorageError
from s2a_edge.spec.manifest import Manifest
from s2a_edge.spec.requirement import requirement
from s2a_edge.spec.text_inputs import TOKENIZER_NAME
from s2a_edge.spec.tunable import TrainableGroup, tunable_groups
from s2a_edge.spec.units import format_bytes

# Rounds of choosing bits for a budget, and the share of it that may stay unused.
_MOST_FITS = 3
_UNUSED = 0.02


@dataclass(frozen=True)
class PackReport:
    """What a pack made.

    Attributes:
        path: the bundle.
        manifest: its manifest, with plan and evidence.
        size_bytes: size of all its files.
        tunable: how much trains, by adapter, with the head and without it.
    """

    path: Path
    manifest: Manifest
    size_bytes: int
    tunable: tuple[TrainableGroup, ...]


def pack(source: str, out: Path, options: PackOptions,
         on_stage: Stage = lambda stage, detail: None) -> PackReport:
    """Compiles ``source`` into the training bundle ``out``.

    Args:
        source: a ``.onnx`` file, ``timm:NAME``, ``hf:FOLDER_OR_CONFIG`` or
            ``package.module:factory``.
        out: ``X.s2a`` for one uncompressed tar, any other name for a folder.
        options: the recipe.
        on_stage: told the name and a detail of each stage as it begins.

    Raises:
        SourceError: the backbone cannot be read or compiled.
        UnsupportedOperatorError: operators without a rule, before anything is done.
        BudgetError: it does not fit ``options.budget_bytes`` or ``options.saved_budget_bytes``.
        DataError: the calibration data cannot be used.
        InternalError: the rehearsal contradicts the plan.
        StorageError: the disk refuses; what existed at ``out`` is untouched.
    """
    _require_place(out)
    on_stage("capture", source)
    captured = capture_source(source, options)
    return pack_captured(captured, out, options, on_stage)


def pack_captured(captured: Captured, out: Path, options: PackOptions,
                  on_stage: Stage = lambda stage, detail: None,
                  search: Search | None = None) -> PackReport:
    """As :func:`pack`, for a backbone that is captured already.

    With ``search``, one that was begun for the same recipe, perhaps with another budget.
    """
    for note in captured.notes:
        on_stage("note", note)
    # What a search decides is not known yet; all else is compiled before anything is written.
    compiled = compile_backbone(captured, options, on_stage) if options.auto is None else None
    staging = _staging_folder(out)
    try:
        if compiled is None:
            with tempfile.TemporaryDirectory(prefix="s2a-search-") as scratch:
                searching = search or Search(captured, options, Path(scratch), on_stage)
                manifest = _searched(staging, captured, options, searching, on_stage)
        else:
            manifest = _fitting(staging, captured, compiled, options, on_stage)
        if captured.tokenizer is not None:
            shutil.copyfile(captured.tokenizer, staging / TOKENIZER_NAME)
        on_stage("bundle", out.name)
        path = write_bundle(staging, manifest, out)
    except OSError as error:
        raise StorageError(where=str(error.filename or out), expected="room to write the bundle",
                           got=error.strerror or str(error),
                           todo="free space or choose another --out") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    size = path.stat().st_size if path.is_file() else sum(
        f.stat().st_size for f in path.iterdir())
    return PackReport(path, manifest, size, tunable_groups(manifest))


def _require_place(out: Path) -> None:
    """Refuses at once, and without writing, what would fail after minutes of work."""
    parent = next(p for p in out.absolute().parents if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise StorageError(where=str(parent), expected="a folder that can be written",
                           got="no folder" if not parent.is_dir() else "no permission",
                           todo="choose another --out")


def _staging_folder(out: Path) -> Path:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise StorageError(where=str(out.parent), expected="a folder that can be written",
                           got=error.strerror or str(error), todo="choose another --out"
                           ) from error


def _fitting(folder: Path, captured: Captured, compiled: Compiled, options: PackOptions,
             on_stage: Stage) -> Manifest:
    """Everything written to ``folder`` and rehearsed, within the budget if there is one.

    What the process needs beside the arena is known after a rehearsal only. With ``--bits auto``
    the arena then gets what the budget leaves, bits are chosen anew, and all is rehearsed again.

    Raises:
        BudgetError: if it does not fit.
    """
    manifest = StagedFiles(folder, compiled, options, on_stage).manifest()
    budget_bytes = options.budget_bytes
    if budget_bytes is None:
        return manifest
    spare_bytes = 0
    for _ in range(_MOST_FITS if compiled.allocated is not None else 0):
        needed = requirement(manifest)
        left_bytes = needed.verdict(budget_bytes)
        enough = left_bytes.fits and left_bytes.headroom_bytes <= _UNUSED * budget_bytes
        if enough:
            break
        on_stage("fit", f"{format_bytes(needed.total_bytes)} into {format_bytes(budget_bytes)}")
        # Measured parts vary a little from one rehearsal to the next.
        spare_bytes += 0 if left_bytes.fits else left_bytes.missing_bytes // 8
        arena_bytes = needed.arena_bytes + budget_bytes - needed.total_bytes - spare_bytes
        changed = with_arena(compiled, arena_bytes, options)
        if changed is None:
            break
        compiled = changed
        manifest = StagedFiles(folder, compiled, options, on_stage).manifest()
    needed = requirement(manifest)
    if not needed.verdict(budget_bytes).fits:
        changes = measured_changes(captured, compiled, options, manifest, folder, on_stage)
        raise does_not_fit(manifest, needed, budget_bytes, changes=changes)
    return manifest


def _searched(folder: Path, captured: Captured, options: PackOptions, search: Search,
              on_stage: Stage) -> Manifest:
    """The configuration that a search chooses, rehearsed within the budget in ``folder``.

    What it predicts too low is learned from the rehearsal, and the next best is taken.

    Raises:
        BudgetError: if none fits.
    """
    budget_bytes = options.budget_bytes
    assert budget_bytes is not None
    while True:
        choice = search.find(budget_bytes)
        candidate = choice.row.candidate
        on_stage("choose", candidate.flags)
        chosen = candidate.options(options)
        compiled = compile_backbone(captured, chosen, on_stage, search.allocated(candidate))
        manifest = StagedFiles(folder, compiled, chosen, on_stage).manifest()
        needed = requirement(manifest, setting=search.setting)
        if needed.verdict(budget_bytes).fits:
            record = search_record(search, choice, budget_bytes)
            return replace(manifest, recipe=replace(manifest.recipe, search=record))
        if not choice.fits:
            changes = measured_changes(captured, compiled, chosen, manifest, folder, on_stage)
            raise does_not_fit(manifest, needed, budget_bytes, setting=search.setting,
                               changes=changes)
        on_stage("fit", f"{format_bytes(needed.total_bytes)}, not "
                 f"{format_bytes(choice.row.total_bytes)} as predicted: the next one")
        search.reject(choice.row, needed.total_bytes)
        for file in folder.iterdir():
            file.unlink()
