"""Drawings of memory over a step, from a bundle with a timeline."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from s2a_edge.cli import app
from s2a_edge.cli.memory_layers import layers, totals
from s2a_edge.cli.memory_png import HEIGHT, WIDTH
from s2a_edge.cli.waterfall import drawn_bar
from s2a_edge.spec.bundle_write import write_bundle
from s2a_edge.spec.memory_plan import MemoryKind
from s2a_edge.spec.requirement import LineKind, requirement
from s2a_edge.spec.timeline import Timeline, pack_timeline
from s2a_edge.spec.units import MIB
from tests.spec.bundle_samples import manifest, stage

EVIL = "</script><img src=x onerror=alert(1)>"
TIMELINE = Timeline(
    "s2a-timeline",
    ("forward", EVIL, "backward"),
    ("kept", EVIL, "dx"),
    (MemoryKind.SAVED, MemoryKind.WORKING, MemoryKind.GRADIENTS),
    (100 * MIB, 30 * MIB, 20 * MIB),
    (0, 0, 2),
    (3, 2, 3),
)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    sample = manifest()
    train = tuple(
        dataclasses.replace(g, timeline=f"train_b{g.batch}.timeline.json.gz")
        for g in sample.graphs.train
    )
    sample = dataclasses.replace(sample, graphs=dataclasses.replace(sample.graphs, train=train))
    staging = stage(tmp_path / "staging")
    for graph in train:
        assert graph.timeline is not None
        (staging / graph.timeline).write_bytes(pack_timeline(TIMELINE))
    return write_bundle(staging, sample, tmp_path / "tiny.s2a")


def plot(bundle: Path, out: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["check", str(bundle), "--plot", str(out), *arguments])


def test_layers_are_stacked_to_what_is_held() -> None:
    needed = requirement(manifest())
    shown = layers(TIMELINE, needed)
    steady = needed.total_bytes - needed.of_kind(LineKind.ARENA)
    assert totals(shown) == [steady + n * MIB for n in (130, 130, 120)]
    names = [layer.name for layer in shown if not layer.steady]
    assert names == ["saved", "working", "gradients on their way"]


def test_a_picture(bundle: Path, tmp_path: Path) -> None:
    done = plot(bundle, tmp_path / "m.png", "--budget", "1GiB")
    assert done.exit_code == 0, done.output
    with Image.open(tmp_path / "m.png") as image:
        assert image.size == (WIDTH, HEIGHT)
        colours = {colour for _, colour in image.convert("RGB").getcolors(2**16) or ()}
    shown = layers(TIMELINE, requirement(manifest()))
    # Everything as large as a pixel is drawn, and so is the legend's square of all others.
    assert {layer.colour for layer in shown} <= colours


def test_a_page_that_needs_nothing_from_outside(bundle: Path, tmp_path: Path) -> None:
    done = plot(bundle, tmp_path / "m.html", "--budget", "1GiB")
    assert done.exit_code == 0, done.output
    page = (tmp_path / "m.html").read_text()
    assert not re.search(r"https?:|src=\"|href=|@import|url\(", page)
    assert page.count("</script>") == 1  # a name cannot end the script
    found = re.search(r"const data = (\{.*?\});\n", page)
    assert found is not None
    data = json.loads(found[1])
    assert data["nodes"] == list(TIMELINE.nodes)
    assert data["budget"] == 2**30
    assert (data["starts"], data["ends"]) == ([0, 0, 2], [3, 2, 3])


def test_it_is_drawn_where_training_does_not_fit_too(bundle: Path, tmp_path: Path) -> None:
    assert plot(bundle, tmp_path / "m.png", "--budget", "10MiB").exit_code == 3
    assert (tmp_path / "m.png").is_file()


def test_other_kinds_of_files_are_refused_first(bundle: Path, tmp_path: Path) -> None:
    done = plot(bundle, tmp_path / "m.jpeg")
    assert done.exit_code == 2
    assert ".png or .html" in done.stderr


def test_a_bundle_without_a_timeline_says_so(tmp_path: Path) -> None:
    plain = write_bundle(stage(tmp_path / "staging"), manifest(), tmp_path / "tiny.s2a")
    done = plot(plain, tmp_path / "m.png")
    assert done.exit_code == 1
    assert "pack it again" in done.stderr


@pytest.mark.parametrize(
    ("start", "size", "expected"),
    [(0, 24, "█" * 24), (12, 12, " " * 12 + "█" * 12), (0, 0, ""), (23, 0, " " * 23)],
)
def test_bars(start: int, size: int, expected: str) -> None:
    assert drawn_bar(start, size, 24) == expected
    assert drawn_bar(0, 1, 10**9) == "▏"  # something is never nothing
