"""What a board tries before it takes a bundle into use, on the runtime that is installed here."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import onnxruntime as ort
import pytest

from s2a_edge.link import board_process
from s2a_edge.spec.bundle import Bundle
from tests.link.conftest import FACTS


def test_a_board_tries_a_step_as_training_runs_it(
    bundles: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []
    answer = board_process._answer

    def ask(command: list[str], text: str, timeout_s: float) -> dict[str, Any]:
        asked.append(json.loads(text))
        return answer(command, text, timeout_s)

    monkeypatch.setattr(board_process, "_answer", ask)
    bundle = Bundle.open(bundles / "a")
    facts = dataclasses.replace(FACTS, onnxruntime=ort.__version__)
    assert board_process.rehearse_step(bundle.path, bundle.manifest, facts) > 0
    assert [Path(request["graph"]).name for request in asked] == ["optimizer.onnx", "train_b1.onnx"]
    plan = bundle.manifest.graphs.train[0].plan
    limit_bytes = plan.arena_limit_bytes(FACTS.cpu_count, facts.onnxruntime_release())
    assert asked[1]["arena_bytes"] + asked[1]["pool_bytes"] == limit_bytes
    assert not any(request["own_weights"] for request in asked)
