"""How figures of an evaluation are named and written for a person."""

from __future__ import annotations

# Figures that are shares of 1; all others have the units of what was measured.
_SHARES = {"top1": "top-1", "macro_f1": "macro F1", "mean_ap": "mAP", "accuracy": "accuracy"}
_NAMES = {**_SHARES, "mae": "MAE", "rmse": "RMSE", "r2": "R²"}


def metric_label(name: str) -> str:
    """``top-1`` for ``top1``, ``mAP`` for ``mean_ap``."""
    return _NAMES.get(name, name)


def metric_text(name: str, value: float | None) -> str:
    """``91.30%`` for a share, else four digits; empty for what is not defined."""
    if value is None:
        return ""
    return f"{value:.2%}" if name in _SHARES else f"{value:.4g}"
