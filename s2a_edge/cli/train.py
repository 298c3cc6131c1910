"""``s2a-edge train``: fine-tune a bundle on a folder of data, inside the budget."""

from __future__ import annotations
