#!/usr/bin/env python3
"""Time and memory of the whole ``s2a-edge pack`` command, rehearsals included.

    python tools/bench_pack.py timm:vit_base_patch16_224 --classes 10
    python tools/bench_pack.py backbone.onnx --runs 3 --json out.json -- --labels labels.txt

The command runs as a process of its own. Its peak and those of the processes that it starts (the
rehearsals) are the kernel's VmHWM, read every few milliseconds; what the kernel tells at the end
(``ru_maxrss``, the largest process of the tree) confirms the largest. Processor time is that of the
whole tree. Peaks count mapped files (libraries, weights.bin) as well as memory of one's own.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path

from s2a_edge.pack.rehearse import subprocess_environment
from s2a_edge.spec.machine import machine

MIB = 2**20
_INTERVAL_S = 0.01
_STATUS = re.compile(r"^(VmHWM|RssAnon|RssFile|RssShmem):\s+(\d+) kB$", re.MULTILINE)
_STAGE = re.compile(r"^\S.*")


@dataclass
class Run:
    """One pack; sizes in bytes.

    Attributes:
        wall_s, cpu_s: of the command; processor time of all its processes.
        pack_peak_bytes: VmHWM of the process of ``pack`` itself.
        pack_anon_bytes: most memory of its own that was seen in it.
        child_peak_bytes: the largest VmHWM of a process that it started.
        tree_peak_bytes: the largest sum of resident memory over its processes, seen at once;
            pages that two of them map are counted twice.
        largest_bytes: the kernel's ``ru_maxrss`` of the tree's largest process.
        weights_bytes: of the bundle's weights.
        stages_s: seconds from the start at which each stage began.
    """

    wall_s: float
    cpu_s: float
    pack_peak_bytes: int
    pack_anon_bytes: int
    child_peak_bytes: int
    tree_peak_bytes: int
    largest_bytes: int
    weights_bytes: int
    stages_s: list[tuple[str, float]] = field(default_factory=list)


def main() -> int:
    """Packs and prints a table."""
    options, others = _options()
    runs = [_pack(options.source, others) for _ in range(options.runs)]
    report = {"command": " ".join(["python", "tools/bench_pack.py", *sys.argv[1:]]),
              "machine": machine(), "python": sys.version.split()[0],
              "versions": {n: version(n) for n in ("onnxruntime", "torch", "onnx")},
              "runs": [asdict(run) for run in runs]}
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(table(options.source, runs))
    return 0


def _options() -> tuple[argparse.Namespace, list[str]]:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("source", help="as pack takes it; other options are passed on to it")
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options, others = parser.parse_known_args()
    return options, [other for other in others if other != "--"]


def _pack(source: str, others: list[str]) -> Run:
    with tempfile.TemporaryDirectory(prefix="bench-pack-") as folder:
        bundle, log = Path(folder) / "bundle", Path(folder) / "log"
        command = [sys.executable, "-m", "s2a_edge", "pack", source, "--out", str(bundle), *others]
        with log.open("wb") as out:
            run = _watched(subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT,
                                            env=subprocess_environment()), log)
        if not bundle.exists():
            sys.exit(log.read_text(errors="replace"))
        run.weights_bytes = (bundle / "weights.bin").stat().st_size
        return run


def _watched(process: subprocess.Popen[bytes], log: Path) -> Run:
    """Follows the tree of processes until its root ends."""
    began_s, said = time.perf_counter(), 0
    run = Run(0, 0, 0, 0, 0, 0, 0, 0)
    while True:
        pid, _, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            break
        sizes = {p: s for p in _tree(process.pid) if (s := _sizes(p))}
        for p, size in sizes.items():
            if p == process.pid:
                run.pack_peak_bytes = max(run.pack_peak_bytes, size["VmHWM"])
                run.pack_anon_bytes = max(run.pack_anon_bytes, size["RssAnon"])
            else:
                run.child_peak_bytes = max(run.child_peak_bytes, size["VmHWM"])
        resident = sum(s["RssAnon"] + s["RssFile"] + s["RssShmem"] for s in sizes.values())
        run.tree_peak_bytes = max(run.tree_peak_bytes, resident)
        lines = [line for line in log.read_text(errors="replace").splitlines()
                 if _STAGE.match(line)]
        run.stages_s += [(line, time.perf_counter() - began_s) for line in lines[said:]]
        said = len(lines)
        time.sleep(_INTERVAL_S)
    process.returncode = 0
    run.wall_s = time.perf_counter() - began_s
    run.cpu_s = usage.ru_utime + usage.ru_stime
    run.largest_bytes = usage.ru_maxrss * 1024
    return run


def _tree(root: int) -> list[int]:
    """``root`` and the processes below it."""
    found = [root]
    for pid in found:
        try:
            for task in Path(f"/proc/{pid}/task").iterdir():
                found += [int(p) for p in (task / "children").read_text().split()]
        except OSError:  # it has ended
            continue
    return found


def _sizes(pid: int) -> dict[str, int]:
    """Bytes by name; empty for a process that has ended."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return {}
    found = {name: int(size) * 1024 for name, size in _STATUS.findall(text)}
    return found if len(found) == 4 else {}


def table(source: str, runs: list[Run]) -> str:
    """Markdown; medians of the times, the largest of the peaks."""
    weights = runs[0].weights_bytes
    lines = [f"| {source}, n = {len(runs)} | | of the weights |", "|---|---:|---:|"]
    for name, value in (("wall time, s", "wall_s"), ("processor time, s", "cpu_s")):
        times = [getattr(run, value) for run in runs]
        lines.append(f"| {name} | {statistics.median(times):.1f} ({min(times):.1f}-"
                     f"{max(times):.1f}) | |")
    for name, value in (("weights.bin, MB", "weights_bytes"),
                        ("pack's process, peak MB", "pack_peak_bytes"),
                        ("of that its own memory (anonymous)", "pack_anon_bytes"),
                        ("largest rehearsal, peak MB", "child_peak_bytes"),
                        ("all processes at once, MB", "tree_peak_bytes")):
        size = max(getattr(run, value) for run in runs)
        lines.append(f"| {name} | {size / 1e6:.0f} | {size / weights:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
