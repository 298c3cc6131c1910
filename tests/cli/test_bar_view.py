"""Bars on a terminal: one at a time, of the training and of what goes to a board."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from s2a_edge.cli.flash_progress import FlashView
from s2a_edge.cli.output import Output
from s2a_edge.cli.progress import ProgressView
from s2a_edge.link.flash import Flashing
from s2a_edge.run.report import rehearsing


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What a terminal of 100 columns was sent."""
    sent = io.StringIO()
    console = Console(file=sent, force_terminal=True, width=100)
    monkeypatch.setattr(Output, "live", lambda self: console)
    return sent


def test_a_terminal_shows_what_is_going_on(screen: io.StringIO) -> None:
    with ProgressView(Output(as_json=False, quiet=False)) as view:
        view.update(rehearsing(3, 2**20, 2**20, None))
        assert view._bar is not None and len(view._bar.tasks) == 1
    assert "rehearsing" in screen.getvalue()


def test_a_phase_takes_the_place_of_the_one_before(screen: io.StringIO) -> None:
    with FlashView(Output(as_json=False, quiet=False)) as view:
        assert view._bar is not None
        for phase, done in (("sending", 5), ("sending", 10), ("checking", 0)):
            view.update(Flashing(phase, done, 10))
            (task,) = view._bar.tasks
            assert (task.description, task.completed) == (phase, done)
    assert not view._bar.live.is_started
    assert "checking" in screen.getvalue()
