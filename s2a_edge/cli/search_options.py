"""What ``pack --auto`` searches, and for what: ``--auto`` and the options beside it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from s2a_edge.cli.memory_plot import require_plot_name
from s2a_edge.spec.errors import UsageError

if TYPE_CHECKING:
    from s2a_edge.spec.device_profile import Provider

_ONLY_WITH_AUTO = {
    "max_gradient_error": "--max-gradient-error",
    "times_from": "--times-from",
    "plot": "--plot",
}


def search_options(
    context: typer.Context,
    auto: bool,
    max_gradient_error: float,
    times_from: str,
    plot: Path | None,
    *,
    budget: str | None,
    device: str | None,
) -> dict[str, Any]:
    """Fields of :class:`s2a_edge.pack.options.PackOptions` for ``--auto``; none without it.

    Args:
        context: of the command: says which options were given and stay as they are.
        auto: of ``--auto``.
        max_gradient_error: of ``--max-gradient-error``.
        times_from: of ``--times-from``.
        plot: of ``--plot``.
        budget: of ``--budget``; without it, the device's.
        device: of ``--device``.

    Raises:
        UsageError: an option that needs ``--auto`` is given without it, or the picture's name or a
            value is not one.
    """
    from s2a_edge.cli.budget_option import resolve_budget
    from s2a_edge.pack.search.options import SEARCHED, SearchOptions

    if plot is not None:
        require_plot_name(plot, (".png",))
    if not auto:
        for name, flag in _ONLY_WITH_AUTO.items():
            if _is_given(context, name):
                raise UsageError(
                    where=flag, expected="--auto beside it", got="none", todo="add --auto"
                )
        return {}
    names = {"micro_batches": "micro_batch"}
    fixed = frozenset(x for x in SEARCHED if _is_given(context, names.get(x, x)))
    search = SearchOptions(fixed, max_gradient_error, times_from)  # type: ignore[arg-type]  # checked by the class
    found: dict[str, Any] = {"auto": search}
    if budget is None and device is not None:
        provider: Provider = "cuda" if times_from == "device" else "cpu"
        given = resolve_budget(budget=None, device=device, provider=provider)
        assert given is not None
        found["budget_bytes"] = given.budget_bytes
    return found


def _is_given(context: typer.Context, name: str) -> bool:
    """Whether the user gave the option, and not its default."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
