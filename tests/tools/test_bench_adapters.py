"""The table of ``tools/bench_adapters.py``."""

from __future__ import annotations

from tools.bench_adapters import MIB, Row, table


def _row(adapters: str, bits: str, saved_mib: float, *cpu_ms: float) -> Row:
    return Row("net", adapters, bits, 10, 0.001, 0.002, saved_mib * MIB, list(cpu_ms))


def test_bytes_are_of_an_image_and_times_are_ratios_to_the_first_choice() -> None:
    shown = table("net", [_row("bias", "32", 8, 10, 30, 20), _row("bias", "4", 1, 40),
                          _row("bias,lrp", "32", 8, 25), _row("bias,lrp", "4", 1.5, 50)])
    head, _, bias, both = shown.splitlines()
    assert head == "| net | tunable | with head | 32 bits: MiB | CPU ms | 4 bits: MiB | CPU ms |"
    assert bias == "| bias | 0.10% | 0.20% | 8.00 | 20 (×1.00) | 1.00 | 40 (×1.00) |"
    assert both == "| bias + lrp | 0.10% | 0.20% | 8.00 | 25 (×1.25) | 1.50 | 50 (×1.25) |"


def test_without_timing_only_bytes_are_shown() -> None:
    assert table("net", [_row("bias", "4", 1)]).endswith("| bias | 0.10% | 0.20% | 1.00 | |")
