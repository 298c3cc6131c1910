"""What a person sees while training runs."""

from __future__ import annotations

import dataclasses

import pytest

from s2a_edge.cli.output import Output
from s2a_edge.cli.progress import ProgressView, figures, title
from s2a_edge.run.report import Progress

MIB = 2**20
NOW = Progress(
    phase="train",
    epoch=2,
    epochs=3,
    step=10,
    steps=40,
    loss=0.51234,
    accuracy=0.875,
    lr=1e-3,
    images_s=20.04,
    memory_bytes=200 * MIB,
    peak_bytes=210 * MIB,
    budget_bytes=300 * MIB,
)


def test_figures() -> None:
    assert title(NOW) == "training 2/3"
    expected = "loss 0.5123  accuracy 87.5%  20.0 images/s  peak 210.0 MiB of 300.0 MiB"
    assert figures(NOW) == expected


def test_unknown_figures_are_left_out() -> None:
    now = dataclasses.replace(NOW, loss=None, accuracy=None, images_s=None, budget_bytes=None)
    assert figures(now) == "peak 210.0 MiB"


def test_while_validating_the_figures_are_the_validations() -> None:
    now = dataclasses.replace(
        NOW, phase="validate", images_s=None, val_loss=0.25, val_metric="top1", val_score=0.913
    )
    assert title(now) == "validating 2/3"
    assert figures(now) == "val loss 0.2500  val top-1 91.30%  peak 210.0 MiB of 300.0 MiB"
    ranked_later = dataclasses.replace(now, val_metric=None, val_score=None)
    assert figures(ranked_later) == "val loss 0.2500  peak 210.0 MiB of 300.0 MiB"
    by_loss = dataclasses.replace(now, val_metric="loss", val_score=0.25)
    assert figures(by_loss) == figures(ranked_later)


def test_while_training_the_last_validation_follows() -> None:
    now = dataclasses.replace(NOW, val_loss=0.25, val_metric="mean_ap", val_score=0.5)
    expected = "loss 0.5123  accuracy 87.5%  last val loss 0.2500  last val mAP 50.00%  20.0 images"
    assert figures(now).startswith(expected)


def test_without_a_terminal_each_phase_ends_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressView(Output(as_json=False, quiet=False)) as view:
        view.update(dataclasses.replace(NOW, phase="rehearse", step=0, steps=0))
        for step in (1, 39, 40, 40):
            view.update(dataclasses.replace(NOW, step=step))
        for step in (1, 3):
            view.update(dataclasses.replace(NOW, phase="validate", step=step, steps=3))
    shown = capsys.readouterr()
    assert shown.out == ""
    assert [line.split("  ")[0] for line in shown.err.splitlines()] == [
        "rehearsing",
        "training 2/3",
        "validating 2/3",
    ]


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressView(Output(as_json=False, quiet=True)) as view:
        view.update(dataclasses.replace(NOW, step=40))
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "")
