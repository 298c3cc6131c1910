"""The table of ``tools/bench_adapters.py``."""

from __future__ import annotations

from tools.bench_adapters import MIB, Row, table


def _row(adapters: str, bits: str, saved_bytes: float, *cpu_ms: float) -> Row:
    return Row("net", adapters, bits, 10, 0.001, 0.002, saved_bytes, 3 * MIB,
               [90 * MIB, 95 * MIB], list(cpu_ms))


def test_bytes_are_of_an_image_and_times_are_ratios_to_the_first_row() -> None:
    shown = table("net", [_row("bias", "32", 8e6, 10, 30, 20), _row("bias,lrp", "4", 1.5e6, 50)])
    head, _, bias, both = shown.splitlines()
    assert head == ("| net | bits | tunable | with head | saved MB / image | arena MiB | "
                    "process peak MiB | CPU ms | × |")
    assert bias == "| bias | 32 | 0.10% | 0.20% | 8.00 | 3.0 | 95 | 20 | 1.00 |"
    assert both == "| bias + lrp | 4 | 0.10% | 0.20% | 1.50 | 3.0 | 95 | 50 | 2.50 |"


def test_without_timing_only_bytes_are_shown() -> None:
    assert table("net", [_row("bias", "4", 1e6)]).endswith(
        "| bias | 4 | 0.10% | 0.20% | 1.00 |  |  |  |  |")
