"""Fine-tune pretrained backbones on small boards, inside a memory budget.

The public API; everything in it is loaded on first use, so that ``import s2a_edge`` needs neither
ONNX Runtime nor torch::

    import s2a_edge

    # on the host
    s2a_edge.pack("model.onnx", "model.s2a", labels=("cat", "dog"))

    # on the board
    bundle = s2a_edge.Bundle.open("model.s2a")
    trainer = s2a_edge.Trainer(bundle, budget_bytes=600 * 2**20)
    trainer.fit("images/train", val="images/val", epochs=3, out="run")

Every error raised on purpose is an :class:`S2AError`.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from s2a_edge.pack.build import PackReport
    from s2a_edge.run.trainer import Trainer
    from s2a_edge.spec.bundle import Bundle
    from s2a_edge.spec.errors import S2AError

    pack: _PackPackage

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

    def __call__(
        self,
        source: str | Path,
        out: str | Path,
        *,
        on_stage: Callable[[str, str], None] | None = None,
        **recipe: Any,
    ) -> PackReport:
        """Compile ``source`` into the training bundle ``out``.

        Args:
            source: a ``.onnx`` file, ``timm:NAME``, ``hf:FOLDER_OR_CONFIG`` or
                ``package.module:factory``.
            out: ``X.s2a`` for one file, any other name for a folder.
            on_stage: told the name and a detail of each stage as it begins.
            recipe: fields of :class:`s2a_edge.pack.options.PackOptions`, such as
                ``labels=("cat", "dog")`` and ``bits=4``.

        Raises:
            S2AError: see :func:`s2a_edge.pack.build.pack`.
        """
        build = import_module("s2a_edge.pack.build")
        options = build.PackOptions(**recipe)
        stages = {} if on_stage is None else {"on_stage": on_stage}
        made: PackReport = build.pack(str(source), Path(out), options, **stages)
        return made


# import_module, not an import statement: the import contracts are about what modules need, and
# this one needs nothing of the packages below it. (s2a_edge.pack itself is an empty module.)
import_module("s2a_edge.pack").__class__ = _PackPackage


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
