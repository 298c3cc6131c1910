"""What a board imports needs neither torch nor onnx, and the package loads nothing early."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent.parent / "s2a_edge"
_HOST_ONLY = ("torch", "onnx", "onnx_ir", "onnxscript")

_BLOCK = """
import importlib, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ImportError(name + " is not installed on a board")

sys.meta_path.insert(0, Blocked())
"""

_IMPORT_ALL = """
for name in {names!r}:
    importlib.import_module(name)
print("imported", len({names!r}))
"""

_LOADED_BY = """
import sys
{statement}
print(",".join(sorted({names!r} & set(sys.modules))))
"""


def _modules(package: str) -> list[str]:
    folder = _PACKAGE / package
    files = sorted(folder.rglob("*.py"))
    dotted = [".".join(("s2a_edge", *f.relative_to(_PACKAGE).with_suffix("").parts)) for f in files]
    return [name.removesuffix(".__init__") for name in dotted]


def _python(code: str) -> str:
    # A missing or failing import shows in stderr; the exit code decides.
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_board_modules_import_without_host_packages() -> None:
    packages = ("spec", "run", "link", "cli")
    names = [*(n for p in packages for n in _modules(p)), "s2a_edge.__main__"]
    code = _BLOCK.format(blocked=_HOST_ONLY) + _IMPORT_ALL.format(names=names)
    assert _python(code) == f"imported {len(names)}"


def test_the_package_alone_loads_no_runtime() -> None:
    names = {*_HOST_ONLY, "onnxruntime", "numpy", "PIL", "typer"}
    code = _LOADED_BY.format(statement="import s2a_edge", names=names)
    assert _python(code) == ""


def test_the_command_line_loads_no_runtime() -> None:
    names = {*_HOST_ONLY, "onnxruntime", "numpy", "PIL"}
    code = _LOADED_BY.format(statement="import s2a_edge.cli", names=names)
    assert _python(code) == ""
