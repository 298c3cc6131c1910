"""The conformance table: a slice of it on small models, and what it does with what goes wrong."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from tools import conformance
from tools.conformance_case import Case
from tools.conformance_models import CASES, CONVOLUTIONAL, TRANSFORMERS
from tools.conformance_worker import LEAST, Outcome, run_case

_SLICE = (
    Case("vit", "timm", "vit_tiny_patch16_224",
         {"img_size": 32, "depth": 1, "embed_dim": 32, "num_heads": 2}, (3, 32, 32)),
    Case("bert", "hf", "BertConfig",
         {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
          "intermediate_size": 64, "vocab_size": 50}, (8,), "mean"),
    Case("resnet", "timm", "resnet10t", {}, (3, 32, 32)),
)
_PASSED = Outcome("net", operators=12, covered=12, kinds=4, trainables=5, parity_error=3e-7,
                  worst="a.bias", float32_error=2e-7, tunable_share=0.0123,
                  plan_bytes={32: 2 * 2**20, 4: 2**20}, measured_bytes={32: 2 * 2**20, 4: 2**20},
                  saved_bytes={32: 100, 4: 20}, gradient_error=0.012, seconds=9.0)


@pytest.mark.parametrize("case", _SLICE, ids=[c.name for c in _SLICE])
def test_small_architectures_pass(case: Case) -> None:
    outcome = run_case(case, (32,))
    assert outcome.failure == ""
    assert outcome.covered == outcome.operators > 0 and outcome.untrained == []
    assert outcome.parity_error is not None and outcome.float32_error is not None
    assert 0 < outcome.parity_error < max(LEAST, 8 * outcome.float32_error)
    assert outcome.tunable_share is not None and 0 < outcome.tunable_share < 0.1
    assert 0.99 < outcome.plan_bytes[32] / outcome.measured_bytes[32] < 1.03


def test_at_least_40_architectures_with_names_of_their_own() -> None:
    names = [c.name for c in CASES]
    assert len(names) == len(set(names)) >= 40
    assert len(names) == len(TRANSFORMERS) + len(CONVOLUTIONAL)


def test_what_a_row_says() -> None:
    assert conformance.row(_PASSED) == (
        "| net | 12/12 | 4 | 3.0e-07 | 2.0e-07 | 5 | 1.23 % | 2.00 / 2.00 | 1.00 / 1.00 | 1.2 % "
        "| 9 |")
    missed = conformance.row(replace(_PASSED, failure="no rule"))
    assert "**miss**: no rule" in missed


def test_a_crash_is_a_row_and_the_table_goes_on(capfd: pytest.CaptureFixture[str]) -> None:
    """One worker raises what nobody expects, the next one is told of a model that is not there."""
    cases = [Case("broken", "timm", "vit_tiny_patch16_224", {"no_such_argument": 1}, (3, 32, 32)),
             Case("absent", "hf", "NoSuchConfig", {}, (8,))]
    found = list(conformance.run(cases, (32,), jobs=2))
    assert [o.name for o in found] == ["broken", "absent"]
    assert "no_such_argument" in found[0].failure and "NoSuchConfig" in found[1].failure
    assert "Traceback" in capfd.readouterr().err


@pytest.mark.parametrize(("failure", "code"), [("", 0), ("no rule", 1)])
def test_the_exit_code_and_json(failure: str, code: int, monkeypatch: pytest.MonkeyPatch,
                                capsys: pytest.CaptureFixture[str]) -> None:
    def run(cases: Sequence[Case], bits: tuple[int, ...], jobs: int) -> list[Outcome]:
        assert [c.name for c in cases] == ["gmlp"] and bits == (32, 4)
        return [replace(_PASSED, failure=failure)]

    monkeypatch.setattr(conformance, "run", run)
    assert conformance.main(["--models", "gmlp", "--json"]) == code
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert answer["cases"][0]["name"] == "net" and "onnxruntime" in answer["environment"]
    assert conformance.main(["--models", "gmlp"]) == code
    assert f"{1 - code} of 1 pass" in capsys.readouterr().out


def test_names_that_match_nothing_are_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert conformance.main(["--models", "no-such-net"]) == 2
    assert "vit" in capsys.readouterr().out.split()
