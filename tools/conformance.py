"""The conformance table: architectures of timm and transformers, packed, rehearsed and checked.

For each case of ``tools/conformance_models.py``: the operators on the way of gradients and how
many have a rule; the bundle's gradients at 32-bit saves against torch.autograd on the original
module in float64; planned and measured arena of the training step; tunable share. Each case has a
process of its own, so that a crash or a lack of memory is one row's failure. Exits with 1 on a
miss.

Run: python -m tools.conformance [--family transformers] [--models SUBSTRING,...] [--bits 32,4]
     [--jobs 2] [--json]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib.metadata import version
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from s2a_edge.spec.machine import machine
from tools.conformance_case import Case
from tools.conformance_models import CASES, CONVOLUTIONAL, TRANSFORMERS
from tools.conformance_worker import FACTOR, LEAST, Outcome, run_case

TIMEOUT_S = 1800
LIMIT_BYTES = 12 * 2**30
_MIB = 2**20
_HEADER = ("| architecture | operators | kinds | parity error | float32's own | trainables | "
           "tunable | plan / measured MiB, 32 bits | plan / measured MiB, 4 bits | "
           "error at 4 bits | s |")


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    wanted = [w for w in options.models.split(",") if w]
    family = {"all": CASES, "transformers": TRANSFORMERS, "convolutional": CONVOLUTIONAL}
    cases = [c for c in family[options.family] if not wanted or any(w in c.name for w in wanted)]
    if options.list or not cases:
        print("\n".join(c.name for c in (cases or CASES)))
        return 0 if cases else 2
    bits = tuple(sorted((int(b) for b in options.bits.split(",")), reverse=True))
    began = time.perf_counter()
    done: list[Outcome] = []
    if not options.json:
        print(f"{_HEADER}\n|{'---|' * (_HEADER.count('|') - 1)}")
    for outcome in run(cases, bits, options.jobs):
        done.append(outcome)
        if not options.json:
            print(row(outcome), flush=True)
    missed = [o for o in done if o.failure]
    if options.json:
        print(json.dumps({"environment": environment(), "cases": [asdict(o) for o in done]}))
    else:
        print(f"\n{len(done) - len(missed)} of {len(done)} pass in "
              f"{time.perf_counter() - began:.0f} s. {environment()}")
    return 1 if missed else 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--family", default="all",
                        choices=("all", "transformers", "convolutional"))
    parser.add_argument("--models", default="", help="substrings of names, separated by commas")
    parser.add_argument("--bits", default="32,4", help="of saved values; parity is checked at 32")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--list", action="store_true", help="names of the cases, and nothing more")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args(arguments)


def run(cases: Sequence[Case], bits: tuple[int, ...], jobs: int) -> Iterator[Outcome]:
    """Outcomes in the order of ``cases``, each from a process of its own."""
    context = multiprocessing.get_context("forkserver")
    # Importing torch, timm and transformers takes seconds: once, before the workers are forked.
    context.set_forkserver_preload(["tools.conformance_worker", "timm", "transformers"])
    waiting = list(enumerate(cases))[::-1]
    running: dict[Connection, tuple[int, Any, Path, float]] = {}
    ready: dict[int, Outcome] = {}
    printed = 0
    while waiting or running:
        while waiting and len(running) < max(jobs, 1):
            index, case = waiting.pop()
            ours, theirs = context.Pipe(duplex=False)
            log = Path(tempfile.mkstemp(prefix="conformance-", suffix=".log")[1])
            process = context.Process(target=_child, args=(case, bits, theirs, log))
            process.start()
            theirs.close()
            running[ours] = (index, process, log, time.perf_counter())
        for connection in wait(list(running), timeout=1.0):
            assert isinstance(connection, Connection)
            index, process, log, _ = running.pop(connection)
            ready[index] = _received(connection, process, log, cases[index])
        for connection, (index, process, log, started) in list(running.items()):
            if time.perf_counter() - started > TIMEOUT_S:
                process.kill()
                del running[connection]
                log.unlink()
                ready[index] = Outcome(cases[index].name, f"not done after {TIMEOUT_S} s")
        while printed in ready:
            yield ready.pop(printed)
            printed += 1


def _child(case: Case, bits: tuple[int, ...], connection: Connection, log: Path) -> None:
    os.dup2(os.open(log, os.O_WRONLY), sys.stderr.fileno())
    resource.setrlimit(resource.RLIMIT_DATA, (LIMIT_BYTES, LIMIT_BYTES))
    connection.send(run_case(case, bits))


def _received(connection: Connection, process: Any, log: Path, case: Case) -> Outcome:
    try:
        outcome: Outcome = connection.recv()
    except EOFError:  # it crashed, was killed, or raised what nobody expects
        process.join()
        said = log.read_text(errors="replace").strip()
        print(said, file=sys.stderr)
        outcome = Outcome(case.name, f"exit code {process.exitcode}: "
                          f"{said.splitlines()[-1] if said else 'not a word'}")
    process.join()
    log.unlink()
    return outcome


def row(o: Outcome) -> str:
    """One line of the table."""
    if o.failure:
        return f"| {o.name} | **miss**: {o.failure} |"

    def arena(bits: int) -> str:
        if bits not in o.plan_bytes:
            return "-"
        return f"{o.plan_bytes[bits] / _MIB:.2f} / {o.measured_bytes[bits] / _MIB:.2f}"

    cells = (o.name, f"{o.covered}/{o.operators}", str(o.kinds),
             "-" if o.parity_error is None else f"{o.parity_error:.1e}" + (
                f" (draw {o.draws})" if o.draws > 1 else ""),
             "-" if o.float32_error is None else f"{o.float32_error:.1e}", str(o.trainables),
             f"{100 * (o.tunable_share or 0):.2f} %", arena(32), arena(4),
             "-" if o.gradient_error is None else f"{100 * o.gradient_error:.1f} %",
             f"{o.seconds:.0f}")
    return f"| {' | '.join(cells)} |"


def environment() -> str:
    """Machine and versions, for beside the figures."""
    packages = ("torch", "timm", "transformers", "onnx", "onnxruntime")
    return (f"{machine()}; {', '.join(f'{p} {version(p)}' for p in packages)}. A pass: error at "
            f"most {FACTOR:g} times float32's own, or {LEAST:g}.")


if __name__ == "__main__":
    sys.exit(main())
