from __future__ import annotations

import sys

import pytest

from s2a_edge.link.heard_process import HeardProcess


def python(code: str) -> list[str]:
    return [sys.executable, "-S", "-c", code]


def test_much_on_stderr_neither_stops_it_nor_is_kept() -> None:
    code = "import sys; sys.stderr.write('x' * 3_000_000 + 'end'); print('done'); sys.exit(3)"
    with HeardProcess(python(code), has_output=True) as process:
        assert process.stdout.read() == b"done\n"
        exit_code, said = process.end()
    assert (exit_code, said[-4:], len(said)) == (3, b"xend", 65_536)


def test_input_that_is_not_taken_is_no_error_here() -> None:
    with HeardProcess(python("raise SystemExit(5)"), has_input=True) as process:
        assert process.end()[0] == 5


def test_it_ends_when_the_block_fails() -> None:
    with pytest.raises(KeyError), HeardProcess(python("import time; time.sleep(60)")) as process:
        raise KeyError
    assert process.end()[0] == -9
