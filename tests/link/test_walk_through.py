"""The walk-through of README, as it stands there, with a board on loopback."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from s2a_edge.link.board_process import own_environment
from tests.link.sshd import run_sshd, sftp_server
from tests.run.data.samples import write_folders

README = Path(__file__).resolve().parent.parent.parent / "README.md"


def write_backbone(path: Path) -> None:
    """image [N, 3, 112, 112] -> convolution, ReLU: map [N, 8, 14, 14]."""
    rng = np.random.default_rng(0)
    shapes = {"w": (8, 3, 8, 8), "b": (8,)}
    weights = [
        numpy_helper.from_array(rng.normal(0, 0.1, shape).astype(np.float32), name)
        for name, shape in shapes.items()
    ]
    nodes = [
        helper.make_node("Conv", ["image", "w", "b"], ["c"], strides=[8, 8]),
        helper.make_node("Relu", ["c"], ["map"]),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, 112, 112])
    made = helper.make_tensor_value_info("map", TensorProto.FLOAT, ["N", 8, 14, 14])
    graph = helper.make_graph(nodes, "small", [image], [made], initializer=weights)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path
    )


def write_program(path: Path, command: str) -> None:
    path.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    path.chmod(0o755)


def walk_through() -> str:
    found = re.search(r"<!-- walk-through.*?```sh\n(.*?)```", README.read_text(), re.S)
    assert found is not None
    return found[1]


def test_every_command_of_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    laptop, home, programs = (tmp_path / name for name in ("laptop", "home", "bin"))
    for folder in (laptop, home, programs, tmp_path / "sshd"):
        folder.mkdir()
    write_backbone(laptop / "backbone.onnx")
    (laptop / "labels.txt").write_text("ant\nbee\n")
    for part in ("train", "val"):
        write_folders(home / "photos" / part, {"ant": 3, "bee": 3})
    python = f"env PYTHONPATH={own_environment()['PYTHONPATH']} {sys.executable}"
    write_program(programs / "s2a-edge", f"{python} -m s2a_edge")
    # The account's own home folder is not the test's.
    settings = (
        f"Subsystem sftp {sftp_server()}",
        f"SetEnv HOME={home} PATH={programs}:/usr/bin:/bin",
        f'ForceCommand cd {home} && eval "$SSH_ORIGINAL_COMMAND"',
    )
    with run_sshd(tmp_path / "sshd", *settings) as server:
        for name in ("ssh", "scp"):
            write_program(programs / name, f"{shutil.which(name)} -F {server.config}")
        environment = {
            **os.environ,
            "PATH": f"{programs}:{os.environ['PATH']}",
            "S2A_EDGE_SSH_OPTIONS": f"-F {server.config}",
        }
        done = subprocess.run(
            ["bash", "-e", "-c", walk_through()],
            cwd=laptop,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert "signed by" in done.stdout
    assert (laptop / "night" / "metrics.jsonl").is_file()
    session = ort.InferenceSession(laptop / "tuned.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"image": np.zeros((1, 3, 112, 112), np.float32)})
    assert logits.shape == (1, 2)
