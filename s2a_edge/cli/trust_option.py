"""``--trust``: whose bundles are used."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from s2a_edge.spec.trust import TrustStore

Trust = Annotated[
    Path | None,
    typer.Option(
        "--trust",
        metavar="PUBKEYS",
        envvar="S2A_EDGE_TRUST",
        help="Refuse a bundle unless a key of this file, or folder of .pub files, signed it.",
    ),
]


def load_trust(path: Path | None) -> TrustStore | None:
    """The trust store that ``--trust`` names; None: a bundle need not be signed.

    Raises:
        UsageError: it holds no key.
    """
    if path is None:
        return None
    from s2a_edge.spec.trust import TrustStore

    return TrustStore.load(path)
