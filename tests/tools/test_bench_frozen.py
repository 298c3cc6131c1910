"""The table of ``bench_frozen``, and what it refuses."""

from __future__ import annotations

import sys

import pytest

from tools import bench_frozen

_ROW = {"storage": "int4", "micro_batch": 1, "rss_bytes": 180 << 20, "pss_bytes": 170 << 20,
        "planned_bytes": 190 << 20, "weights_bytes": 44 << 20, "arena_bytes": 20 << 20,
        "sessions_bytes": 33 << 20, "steps": {"portable": {"ms": 561.2, "cpu_ms": 956.0}}}


def test_a_row_for_each_case() -> None:
    report = {"model": "vit", "machine": "host", "command": "python …", "rows": [_ROW]}
    lines = bench_frozen._table(report).splitlines()
    assert lines[-1] == ("| int4 | 1 | 180.0 | 170.0 | 190.0 | 44.0 | 20.0 | 33.0 "
                         "| 561 (956) |  |")
    assert lines[-1].count("|") == lines[-2].count("|") == lines[-3].count("|")


@pytest.mark.parametrize("case", ["int2:1", "int4", "int4:x"])
def test_a_case_names_a_storage_and_a_micro_batch(case: str, monkeypatch: pytest.MonkeyPatch,
                                                  ) -> None:
    monkeypatch.setattr(sys, "argv", ["bench_frozen", "--data", ".", "--cases", case])
    with pytest.raises(SystemExit, match="expected STORAGE:MICRO_BATCH"):
        bench_frozen.main()
