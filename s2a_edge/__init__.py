"""Fine-tune pretrained backbones on small boards, inside a memory budget.

The public API; everything in it is loaded on first use, so that ``import s2a_edge`` needs neither
ONNX Runtime nor torch::

    import s2a_edge

    s2a_edge.pack("model.onnx", "model.s2a", classes=2)          # on the host
    bundle = s2a_edge.Bundle.open("model.s2a")                    # on the board
    trainer = s2a_edge.Trainer(bundle, budget_bytes=600 * 2**20)
    trainer.fit("images/train", val="images/val", epochs=3, out="run")

Every error raised on purpose is an :class:`S2AError`.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from s2a_edge.pack.build import pack
    from s2a_edge.run.trainer import Trainer
    from s2a_edge.spec.bundle import Bundle
    from s2a_edge.spec.errors import S2AError

__version__ = "0.1.0"

__all__ = ["Bundle", "S2AError", "Trainer", "__version__", "pack"]

_HOMES = {
    "Bundle": "s2a_edge.spec.bundle",
    "S2AError": "s2a_edge.spec.errors",
    "Trainer": "s2a_edge.run.trainer",
}


class _PackPackage(ModuleType):
    """The package ``s2a_edge.pack``, which is also the function of that name.

    Importing anything below ``s2a_edge.pack`` puts the package where the function would be;
    calling the package makes the order of imports irrelevant.
    """

    def __call__(self, *args: object, **options: object) -> object:
        return import_module("s2a_edge.pack.build").pack(*args, **options)


# import_module, not an import statement: the import contracts are about what modules need, and
# this one needs nothing of the packages below it. (s2a_edge.pack itself is an empty module.)
import_module("s2a_edge.pack").__class__ = _PackPackage


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
