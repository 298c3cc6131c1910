"""``pack`` from end to end, and what is left when it fails."""

from __future__ import annotations

import hashlib
import resource
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from s2a_edge.pack import build, staged_files
from s2a_edge.pack import compile as compile_module
from s2a_edge.pack.build import PackReport, pack, pack_captured
from s2a_edge.pack.capture import Captured
from s2a_edge.pack.compile import Compiled
from s2a_edge.pack.options import PackOptions
from s2a_edge.pack.plan import plan_memory
from s2a_edge.spec.bundle import Bundle
from s2a_edge.spec.errors import InternalError, StorageError, UnsupportedOperatorError
from tests.pack.compiled import LABELS, captured, compile_captured, compiled

OPTIONS = PackOptions(labels=LABELS, micro_batches=(4, 2), effective_batch=8)
ONE_BATCH = replace(OPTIONS, micro_batches=(4,))
SOURCE = "tests.pack.models:{}"


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> PackReport:
    return _alone(pack(SOURCE.format("tiny_vit"), tmp_path_factory.mktemp("vit") / "bundle",
                       OPTIONS))


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> PackReport:
    folder = tmp_path_factory.mktemp("resnet")
    return _alone(pack(SOURCE.format("tiny_resnet"), folder / "resnet.s2a",
                       replace(ONE_BATCH, optimizer="sgd")))


def _alone(report: PackReport) -> PackReport:
    assert list(report.path.parent.iterdir()) == [report.path]
    return report


@pytest.fixture(params=["vit", "resnet"])
def packed(request: pytest.FixtureRequest) -> PackReport:
    report: PackReport = request.getfixturevalue(request.param)
    return report


def test_the_bundle_opens_and_is_what_the_report_says(packed: PackReport) -> None:
    with Bundle.open(packed.path) as bundle:
        assert bundle.manifest == packed.manifest
        assert set(bundle.weights()) == {w.name for w in packed.manifest.weights}
        initial = bundle.initial_parameters()
        assert {n: v.shape for n, v in initial.items()} == {
            t.name: t.shape for t in packed.manifest.trainables}


def test_a_folder_holds_its_files_and_a_tar_the_same(vit: PackReport, resnet: PackReport) -> None:
    names = {p.name for p in vit.path.iterdir()}
    assert names == {"manifest.json", "SHA256SUMS", *vit.manifest.files()}
    assert names >= {"train_b2.onnx", "train_b4.onnx", "eval.onnx", "infer.onnx",
                     "optimizer.onnx", "weights.bin", "adapters.safetensors"}
    assert vit.size_bytes == sum(p.stat().st_size for p in vit.path.iterdir())
    assert resnet.size_bytes == resnet.path.stat().st_size
    listing = subprocess.run(["tar", "tf", resnet.path], capture_output=True, text=True, check=True)
    assert listing.stdout.split()[0] == "manifest.json"
    assert set(listing.stdout.split()) == {"manifest.json", "SHA256SUMS", *resnet.manifest.files()}


def test_the_uncompressed_step_in_halves_has_the_same_gradients(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    errors = []
    monkeypatch.setattr(staged_files, "_REPEAT", 1)
    np.savez(tmp_path / "data.npz", labels=np.arange(8) % 5,
             image=np.random.default_rng(5).standard_normal((8, 3, 16, 16)).astype(np.float32))
    recipe = replace(ONE_BATCH, adapters=("bias", "lsb"), reduce=4,
                     calibration=tmp_path / "data.npz")
    for least, batch in ((5, 4), (4, 2)):
        monkeypatch.setattr(compile_module, "_HALVED_FROM", least)
        made = compile_captured(captured("tiny_vit"), adapters=("bias", "lsb"), reduce=4)
        assert set(made.references) == {batch}
        report = pack_captured(captured("tiny_vit"), tmp_path / f"{batch}.s2a", recipe)
        error = report.manifest.graphs.train[-1].evidence.gradient_error
        assert error is not None and error.total > 0
        errors.append(error.each)
    assert errors[1] == pytest.approx(errors[0], rel=1e-3, abs=1e-5)


def test_checksums_hold_for_sha256sum(vit: PackReport) -> None:
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=vit.path,
                   check=True)


def test_every_graph_has_a_plan_and_evidence_that_it_holds(packed: PackReport) -> None:
    graphs = packed.manifest.graphs
    for plan, seen in (*((g.plan, g.evidence) for g in graphs.train),
                       (graphs.eval.plan, graphs.eval.evidence),
                       (graphs.optimizer.plan, graphs.optimizer.evidence)):
        assert plan.lower_bound_bytes <= plan.liveness_peak_bytes <= plan.arena_bytes
        assert seen.arena_measured_bytes <= plan.arena_bytes
        # The search ends at half a percent or one page; tiny plans are a few pages.
        assert seen.arena_measured_bytes >= 0.95 * plan.arena_bytes - 4096
        assert sum(plan.at_peak.values()) == plan.liveness_peak_bytes
        assert seen.n == 3 and seen.step_ms > 0
        assert seen.process_peak_bytes > seen.runtime_base_bytes > 2**20


def test_training_graphs_report_their_gradient_error(vit: PackReport, resnet: PackReport) -> None:
    small, large = vit.manifest.graphs.train
    assert (small.batch, large.batch) == (2, 4)
    error = large.evidence.gradient_error
    assert error is not None and set(error.each) == {t.name for t in vit.manifest.trainables}
    assert 0 < error.median <= error.max == error.each[error.worst] < 0.5
    assert 0 < error.total < 0.25 and error.cosine > 0.97
    exact = resnet.manifest.graphs.train[0].evidence.gradient_error
    assert exact is not None and exact.max == 0  # masks and indices lose nothing
    assert vit.manifest.graphs.eval.evidence.gradient_error is None


def test_the_manifest_says_what_was_asked_for(vit: PackReport, resnet: PackReport) -> None:
    recipe = vit.manifest.recipe
    assert (recipe.bits, recipe.optimizer, recipe.effective_batch) == (4, "adamw", 8)
    assert recipe.micro_batches == (2, 4) and recipe.adapters == ("bias", "head")
    assert resnet.manifest.recipe.optimizer == "sgd"
    assert vit.manifest.task.labels == LABELS and vit.manifest.task.classes == 5
    (image,) = vit.manifest.inputs
    assert (image.kind, image.shape, image.dtype) == ("image", (3, 16, 16), "float32")
    kinds = {t.kind for t in vit.manifest.trainables}
    assert kinds == {"bias", "norm_bias", "head_weight", "head_bias"}
    made = compiled("tiny_vit", bits=4)
    assert {s.value: s.stored_bytes for s in vit.manifest.saved} == {
        s.value: s.stored_bytes for s in made.steps[4].saved}
    assert set(vit.manifest.versions) >= {"onnx", "onnxruntime", "numpy", "torch"}


def test_saved_bytes_of_the_plan_are_those_of_the_list(packed: PackReport) -> None:
    graph = packed.manifest.graphs.train[-1]
    listed = sum(s.stored_bytes for s in packed.manifest.saved)
    # The head's features may be a reshaped view of another value, counted where that is.
    assert 0 <= listed - graph.plan.saved_bytes <= 4 * 4 * 32


def test_initial_parameters_are_the_models(vit: PackReport) -> None:
    with Bundle.open(vit.path) as bundle:
        initial = bundle.initial_parameters()
        for t in compiled("tiny_vit", bits=4).trainables:
            np.testing.assert_array_equal(initial[t.name], t.initial)


# Refusals.

def _digest(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in sorted(folder.rglob("*")) if p.is_file()}


def test_operators_without_a_rule_come_first_and_all_at_once(tmp_path: Path) -> None:
    stages: list[str] = []
    with pytest.raises(UnsupportedOperatorError) as error:
        pack(SOURCE.format("unsupported"), tmp_path / "new" / "bundle", OPTIONS,
             lambda stage, detail: stages.append(stage))
    assert error.value.got == "Asinh (ai.onnx 21) in mix; Atan (ai.onnx 21) in bend"
    assert list(tmp_path.iterdir()) == []
    assert not {"differentiate", "emit", "rehearse"} & set(stages)


def test_without_gradients_through_them_the_same_operators_pass(tmp_path: Path) -> None:
    report = pack(SOURCE.format("unsupported"), tmp_path / "bundle",
                  replace(OPTIONS, adapters=("head",), micro_batches=(2,)))
    assert [t.name for t in report.manifest.trainables] == ["head.weight", "head.bias"]


@pytest.mark.parametrize("place", ["file/bundle", "file/deep/bundle.s2a"])
def test_a_place_that_is_no_folder_is_refused_before_any_work(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="a folder that can be written"):
        pack(SOURCE.format("tiny_vit"), tmp_path / place, OPTIONS, _no_stage)


def test_a_file_system_that_takes_no_folders_is_refused(compiled_before: None) -> None:
    with pytest.raises(StorageError, match="/proc"):
        pack(SOURCE.format("tiny_vit"), Path("/proc/bundle"), ONE_BATCH)


def _no_stage(stage: str, detail: str) -> None:
    pytest.fail(f"stage {stage} began")


@pytest.fixture
def compiled_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Capture and compilation as other tests made them, and one run a rehearsal."""
    monkeypatch.setattr(build, "capture_source", _captured)
    monkeypatch.setattr(build, "compile_backbone", _compiled)
    monkeypatch.setattr(staged_files, "_REPEAT", 1)


def _captured(source: str, _: PackOptions) -> Captured:
    return captured(source.partition(":")[2])


def _compiled(source: Captured, *_: object) -> Compiled:
    return compiled(source.source.name.partition(":")[2], bits=4)


@pytest.mark.parametrize(("form", "stage"), [
    ("bundle", "emit"), ("bundle", "plan"), ("bundle", "rehearse"), ("bundle", "bundle"),
    ("bundle.s2a", "rehearse"), ("bundle.s2a", "bundle")])
def test_a_full_disk_at_any_stage_leaves_the_old_bundle(
        form: str, stage: str, vit: PackReport, resnet: PackReport, tmp_path: Path,
        compiled_before: None) -> None:
    out = tmp_path / form
    if form == "bundle":
        shutil.copytree(vit.path, out)
    else:
        shutil.copy(resnet.path, out)
    before = _digest(tmp_path)
    reached: list[str] = []
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill_up(name: str, detail: str) -> None:
        reached.append(name)
        if name == stage:  # from here on no file may be larger; subprocesses inherit it
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))

    try:
        with pytest.raises(StorageError) as error:
            pack(SOURCE.format("tiny_vit"), out, ONE_BATCH, fill_up)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert reached[-1] == stage and "too large" in error.value.got
    assert _digest(tmp_path) == before


def test_a_plan_that_does_not_hold_fails_the_pack(
        tmp_path: Path, compiled_before: None, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = plan_memory

    def optimistic(*args: Any, **options: Any) -> Any:
        made = honest(*args, **options)
        return replace(made, plan=replace(made.plan, arena_bytes=made.plan.arena_bytes // 2))

    monkeypatch.setattr(staged_files, "plan_memory", optimistic)
    with pytest.raises(InternalError, match="the plan is wrong"):
        pack(SOURCE.format("tiny_vit"), tmp_path / "bundle", ONE_BATCH)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("threads", [1, 2])
def test_plan_and_rehearsal_agree_about_threads(threads: int, tmp_path: Path,
                                                compiled_before: None) -> None:
    """A convolution takes working memory for each thread."""
    report = pack(SOURCE.format("tiny_resnet"), tmp_path / "bundle",
                  replace(ONE_BATCH, threads=threads))
    assert report.manifest.graphs.train[0].plan.threads == threads
