"""From the outcomes of ``accuracy`` to its table: means, spread, paired differences."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tools.accuracy_task import Outcome

PEERS = ("ours-32", "ours-4", "torch")
TARGET_POINTS = 0.5
_MIB = 2**20


@dataclass(frozen=True)
class Difference:
    """One configuration against another, over the seeds that both have.

    Attributes:
        mean_points: mean difference of top-1 in percentage points; positive: better than it.
        std_points: standard deviation of the difference; None for one seed.
        first_loss: largest difference of the first step's loss, before any update.
        max_loss: largest difference of the training loss at any step.
        n: seeds.
    """

    mean_points: float
    std_points: float | None
    first_loss: float
    max_loss: float
    n: int


@dataclass(frozen=True)
class Row:
    """One configuration.

    Attributes:
        configuration: its name.
        top1_percent: by seed.
        mean_percent: of these.
        std_percent: standard deviation (n - 1); None for one seed.
        against: differences to the peers that were run.
        images_s: median over seeds, training.
        peak_bytes: largest process peak.
        load_average: largest of its processes; far above the cores, images_s says little.
    """

    configuration: str
    top1_percent: dict[int, float]
    mean_percent: float
    std_percent: float | None
    against: dict[str, Difference]
    images_s: float
    peak_bytes: int
    load_average: float


def rows(outcomes: Iterable[Outcome]) -> list[Row]:
    """One row per configuration, in the order of their first outcome."""
    groups: dict[str, dict[int, Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(outcome.configuration, {})[outcome.seed] = outcome
    return [_row(name, group, groups) for name, group in groups.items()]


def _row(name: str, group: dict[int, Outcome], groups: dict[str, dict[int, Outcome]]) -> Row:
    percent = {seed: 100 * o.top1 for seed, o in sorted(group.items())}
    against = {peer: difference(group, groups[peer]) for peer in PEERS
               if peer != name and peer in groups and group.keys() & groups[peer].keys()}
    return Row(name, percent, statistics.mean(percent.values()), _std(list(percent.values())),
               against, statistics.median(o.images_s for o in group.values()),
               max(o.peak_bytes for o in group.values()),
               max(o.load_average for o in group.values()))


def difference(group: dict[int, Outcome], peer: dict[int, Outcome]) -> Difference:
    """Differences over the common seeds, which must not be empty."""
    seeds = sorted(group.keys() & peer.keys())
    points = [100 * (group[s].top1 - peer[s].top1) for s in seeds]
    curves = [_deviations(group[s].losses, peer[s].losses) for s in seeds]
    return Difference(statistics.mean(points), _std(points), max(c[0] for c in curves),
                      max(max(c) for c in curves), len(seeds))


def _deviations(losses: Sequence[float], others: Sequence[float]) -> list[float]:
    return [abs(a - b) for a, b in zip(losses, others, strict=True)]


def _std(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def verdicts(found: Sequence[Row]) -> list[str]:
    """Whether means with coded saves lie within the target of each peer's."""
    lines = []
    for row in found:
        if row.configuration in ("ours-4", "ours-auto"):
            for peer, delta in row.against.items():
                holds = abs(delta.mean_points) <= TARGET_POINTS
                lines.append(f"- {row.configuration} against {peer}: {delta.mean_points:+.2f} "
                             f"points over {delta.n} seeds; within {TARGET_POINTS}: "
                             f"{'yes' if holds else 'NO'}")
    return lines


def table(report: dict[str, Any], found: Sequence[Row]) -> str:
    """Markdown: what was run and where, one row per configuration, verdicts."""
    head = ["configuration", "top-1 % (mean ± sd)", "by seed",
            *(f"Δ to {peer}" for peer in PEERS), *(f"loss Δ to {peer}" for peer in PEERS),
            "images/s", "process peak MiB", "load average"]
    lines = [f"{report['model']}, {report['what']}", "",
             f"{report['machine']}, revision {report['revision']}", "",
             f"`{report['command']}`", "", "| " + " | ".join(head) + " |",
             "|---|" + "---:|" * (len(head) - 1)]
    for row in found:
        deltas = [row.against.get(peer) for peer in PEERS]
        cells = [row.configuration, _spread(row.mean_percent, row.std_percent),
                 " ".join(f"{v:.2f}" for v in row.top1_percent.values()),
                 *("" if d is None else _spread(d.mean_points, d.std_points, "+")
                   for d in deltas),
                 *("" if d is None else f"{d.first_loss:.1e}, {d.max_loss:.1e}" for d in deltas),
                 f"{row.images_s:.1f}", f"{row.peak_bytes / _MIB:.0f}",
                 f"{row.load_average:.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    note = ("Differences are in percentage points, paired by seed; loss Δ: of the first step, and "
            "the largest of all steps.")
    return "\n".join([*lines, "", note, "", *verdicts(found)])


def _spread(mean: float, std: float | None, sign: str = "") -> str:
    return f"{mean:{sign}.2f}" + ("" if std is None else f" ± {std:.2f}")


def plain(found: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows as JSON takes them."""
    return [asdict(row) for row in found]
