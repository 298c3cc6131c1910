"""What must not be left half done: Python's own signal handlers wait until it is done.

A handler runs between two bytecodes of the main thread and may raise, as that of Ctrl-C does. While
one graph updates everything there is no bytecode in between; while it is run chunk by chunk there
is.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def undivided() -> Generator[None, None, None]:
    """Let handlers of SIGINT and SIGTERM run after the block, each once, instead of within it.

    Signals whose default ends the process still do: memory is lost as a whole then.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # handlers run in the main thread
        return
    handlers = {number: handler for number in _SIGNALS
                if callable(handler := signal.getsignal(number))}
    arrived: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if number not in arrived:
            arrived.append(number)

    for handled in handlers:
        signal.signal(handled, note)
    try:
        yield
    finally:
        for handled, handler in handlers.items():
            signal.signal(handled, handler)
        for number in arrived:
            signal.raise_signal(number)


__all__ = ["undivided"]
