"""``python -m s2a_edge``: the same as the ``s2a-edge`` command."""

from __future__ import annotations

from s2a_edge.cli import main

if __name__ == "__main__":
    main()
