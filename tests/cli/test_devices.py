"""``devices list|show|detect`` over the shipped profiles and a board's files."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from s2a_edge.cli import app
from s2a_edge.spec.device_profile import profile_names


def _json(*arguments: str) -> object:
    done = CliRunner().invoke(app, ["devices", *arguments, "--json"])
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


def test_list_has_every_profile() -> None:
    listed = _json("list")
    assert isinstance(listed, list)
    assert [entry["name"] for entry in listed] == list(profile_names())
    done = CliRunner().invoke(app, ["devices", "list"])
    assert all(name in done.stdout for name in profile_names())


def test_show_gives_every_figure_its_source() -> None:
    shown = _json("show", "orin-nano-8gb")
    assert isinstance(shown, dict)
    assert shown["memory"]["mem_total_bytes"]["value"] == 7620 * 2**20
    done = CliRunner().invoke(app, ["devices", "show", "orin-nano-8gb"])
    assert "7.44 GiB" in done.stdout
    assert shown["memory"]["mem_total_bytes"]["source"] in " ".join(done.stdout.split())


def test_unknown_device_suggests_the_closest() -> None:
    done = CliRunner().invoke(app, ["devices", "show", "orin-nanno"])
    assert done.exit_code == 1
    assert "did you mean orin-nano-8gb" in done.stderr


def test_detect_reads_a_board_from_its_files(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "proc").mkdir()
    tnspec = "TNSPEC 3767-300-0003-M.1-1-1-jetson-orin-nano-devkit-\n"
    (tmp_path / "etc/nv_boot_control.conf").write_text(tnspec)
    (tmp_path / "proc/meminfo").write_text("MemTotal:        7802880 kB\n")
    facts = _json("detect", "--root", str(tmp_path))
    assert isinstance(facts, dict)
    assert facts["profile"] == "orin-nano-8gb"
    assert facts["mem_total_bytes"] == 7802880 * 1024
    done = CliRunner().invoke(app, ["devices", "detect", "--root", str(tmp_path), "--quiet"])
    assert (done.exit_code, done.stdout, done.stderr) == (0, "", "")
