"""``pack --auto`` as a user runs it: really calibrated, packed and rehearsed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from s2a_edge.cli import app
from s2a_edge.cli.frontier_png import colour
from s2a_edge.spec.bundle import Bundle
from s2a_edge.spec.errors import BundleError
from s2a_edge.spec.manifest import Manifest
from s2a_edge.spec.requirement import requirement
from s2a_edge.spec.units import MIB


def _pack(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["pack", *map(str, arguments)])


@pytest.fixture(scope="module")
def packed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("auto")
    recipe = ("--classes", 3, "--batch", 4, "--threads", 1, "--no-native")
    done = _pack(source, "--out", folder / "b.s2a", *recipe, "--auto", "--bits", 4,
                 "--recompute", "cheap", "--budget", "150MiB", "--plot", folder / "f.png")
    assert done.exit_code == 0, done.stderr
    assert "calibrate: --micro-batch" in done.stderr
    assert "chosen" in done.stdout and "configurations weighed" in done.stdout
    return folder


def test_the_choice_and_its_reasons_are_in_the_manifest(packed: Path) -> None:
    with Bundle.open(packed / "b.s2a") as bundle:
        manifest = bundle.manifest
    search = manifest.recipe.search
    assert search is not None
    chosen = search.rows[search.chosen]
    assert search.budget_bytes == 150 * MIB
    assert search.fixed == ("bits", "recompute")
    assert (chosen.micro_batch,) == manifest.recipe.micro_batches
    assert manifest.recipe.bits == 4
    assert search.reasons and search.calibrated
    assert all(run.measured_ms > 0 and run.predicted_ms > 0 for run in search.calibrated)
    # What was predicted is near what the rehearsal found, and not below it.
    needed = requirement(manifest).total_bytes
    assert needed <= chosen.total_bytes + MIB
    assert chosen.total_bytes - needed < 8 * MIB


def test_inspect_shows_it(packed: Path) -> None:
    done = CliRunner().invoke(app, ["inspect", str(packed / "b.s2a")])
    assert done.exit_code == 0, done.stderr
    assert "configurations weighed" in done.stdout


def test_picture(packed: Path) -> None:
    with Image.open(packed / "f.png") as image:
        counted = image.convert("RGB").getcolors(image.width * image.height)
    assert counted is not None
    pixels = {found for _, found in counted}
    assert (200, 0, 0) in pixels  # the budget, and the ring of the chosen one
    assert colour(0.0, 1.0) in pixels or colour(1.0, 1.0) in pixels


def test_a_manifest_that_contradicts_its_search_is_refused(packed: Path) -> None:
    with Bundle.open(packed / "b.s2a") as bundle:
        manifest = bundle.manifest
    search = manifest.recipe.search
    assert search is not None

    def changed(**fields: object) -> Manifest:
        made = dataclasses.replace(search, **fields)  # type: ignore[arg-type]  # names are data
        return dataclasses.replace(
            manifest, recipe=dataclasses.replace(manifest.recipe, search=made))

    with pytest.raises(BundleError, match="chosen"):
        changed(chosen=len(search.rows)).to_json()
    row = dataclasses.replace(search.rows[search.chosen], frozen="int8")
    with pytest.raises(BundleError, match="as packed"):
        changed(rows=(row,), chosen=0).to_json()
    # A bundle of before the search, or packed without, has none.
    text = json.loads(manifest.to_json())
    del text["recipe"]["search"]
    assert Manifest.from_json(json.dumps(text)).recipe.search is None


def test_nothing_fits(source: Path, tmp_path: Path) -> None:
    recipe = ("--classes", 3, "--batch", 2, "--threads", 1, "--no-native", "--json")
    fixed = ("--bits", 32, "--recompute", "cheap", "--attention", "auto", "--micro-batch", 2)
    # Below what Python and the runtime take by themselves.
    done = _pack(source, "--out", tmp_path / "b.s2a", *recipe, *fixed, "--auto",
                 "--budget", "40MiB")
    assert done.exit_code == 3
    error = json.loads(done.stdout)
    assert error["missing_bytes"] > 20 * MIB
    assert "MiB too little" in error["got"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--auto"], "--budget or --device"),
        (["--plot", "f.png", "--budget", "1GiB"], "--auto beside it"),
        (["--max-gradient-error", "0.2"], "--auto beside it"),
        (["--auto", "--budget", "1GiB", "--max-gradient-error", "0"], "a number above 0"),
        (["--auto", "--budget", "1GiB", "--plot", "f.html"], ".png"),
        (["--auto", "--budget", "1GiB", "--times-from", "device"], "--device beside it"),
        (["--auto", "--device", "cpu-reference"], "--budget"),
    ],
)
def test_wrong_flags(source: Path, tmp_path: Path, arguments: list[str],
                     expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = _pack(source, "--out", "b.s2a", "--classes", 2, *arguments)
    assert done.exit_code in (1, 2)
    assert expected in done.stderr.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []
