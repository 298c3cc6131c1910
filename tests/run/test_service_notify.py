from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from s2a_edge.run.report import Progress
from s2a_edge.run.service_notify import ServiceNotifier
from s2a_edge.run.trainer import Trainer
from tests.run.test_fit import signal_at


@contextmanager
def manager(address: str) -> Iterator[socket.socket]:
    """A service manager's end of the socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bound:
        bound.bind("\0" + address[1:] if address[0] == "@" else address)
        bound.setblocking(False)
        yield bound


def heard(bound: socket.socket) -> list[str]:
    messages = []
    while True:
        try:
            messages.append(bound.recv(4096).decode())
        except BlockingIOError:
            return messages


@pytest.fixture(params=["path", "abstract"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "abstract":
        return f"@s2a-edge-test-{secrets.token_hex(8)}"
    return str(tmp_path / "notify")


def test_ready_alive_and_stopping_arrive(address: str) -> None:
    with manager(address) as bound:
        service = ServiceNotifier.of_environment(
            {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1", "WATCHDOG_PID": "1"}
        )
        service.ready()
        service.alive("epoch 1,\nstep 2")
        service.stopping()
        messages = heard(bound)
    assert [m.splitlines()[0] for m in messages] == ["READY=1", "WATCHDOG=1", "STOPPING=1"]
    assert messages[1] == "WATCHDOG=1\nSTATUS=epoch 1, step 2"


def test_the_watchdog_is_fed_four_times_a_period(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr("s2a_edge.run.service_notify.time.monotonic", lambda: clock[0])
    with manager(address) as bound:
        service = ServiceNotifier(address, watchdog_s=8.0)
        service.ready()
        for _ in range(80):  # eight seconds of quick steps
            clock[0] += 0.125
            service.alive("step")
        messages = heard(bound)
    assert sum(m.startswith("WATCHDOG=1") for m in messages) == 5  # one period and a quarter
    assert len(messages) == 6


@pytest.mark.parametrize("period", ["", "0", "-5", "soon", "²"])
def test_without_a_watchdog_nothing_feeds_it(address: str, period: str) -> None:
    with manager(address) as bound:
        environment = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": period}
        ServiceNotifier.of_environment(environment).alive("step")
        assert heard(bound) == []


@pytest.mark.parametrize("value", [None, "", "@", "relative", "vsock:2:1", "/no/such/socket"])
def test_no_manager_is_no_error(value: str | None) -> None:
    environment = {"WATCHDOG_USEC": "1"} | ({} if value is None else {"NOTIFY_SOCKET": value})
    service = ServiceNotifier.of_environment(environment)
    service.ready()
    service.alive("step")
    service.stopping()


def test_a_manager_that_does_not_listen_holds_nothing_up(tmp_path: Path) -> None:
    address = str(tmp_path / "notify")
    with manager(address):
        service = ServiceNotifier(address, watchdog_s=1e-9)
        for _ in range(5000):  # far more than a socket's queue takes
            service.alive("step")


@pytest.mark.parametrize("stopped", [False, True])
def test_the_training_loop_tells_the_manager(
    toy: Path,
    train_npz: Path,
    val_npz: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stopped: bool,
) -> None:
    address = str(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    monkeypatch.setenv("WATCHDOG_USEC", "1")
    on_progress = signal_at(1, 3) if stopped else None
    before_ready: list[str] = []

    def watch(now: Progress) -> None:
        if now.phase == "rehearse":
            before_ready.extend(heard(bound))
        messages.extend(heard(bound))
        if on_progress is not None:
            on_progress(now)

    messages: list[str] = []
    with manager(address) as bound:
        Trainer(toy).fit(
            train_npz, val=val_npz, epochs=1, lr=0.01, out=tmp_path / "run", on_progress=watch
        )
        messages += heard(bound)
    first = [m.splitlines()[0] for m in messages]
    assert before_ready == []
    assert first[0] == "READY=1"
    assert first.count("READY=1") == 1
    assert "WATCHDOG=1\nSTATUS=epoch 1, step 2" in messages
    assert ("WATCHDOG=1\nSTATUS=validation after epoch 1" in messages) is not stopped
    assert (first[-1] == "STOPPING=1") is stopped
    assert os.environ["NOTIFY_SOCKET"] == address
