"""An environment of its own for onnxruntime-training: it has the same import name as onnxruntime.

    python -m tools.ort_training_environment --cache out/ort-training

prints the interpreter to run ``tools.ort_training_train`` with. What it installs is what
``pip install '.[ort-training]'`` would, and the packages that read images and bundles.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import types
from importlib.util import find_spec
from pathlib import Path

REQUIREMENT = "onnxruntime-training-cpu==1.19.2"
# Wheels exist for these; any other Python of the packer is asked for by --python.
PYTHONS = ((3, 8), (3, 11))
CACHE = Path.home() / ".cache/s2a-edge/ort-training"
ROOT = Path(__file__).resolve().parent.parent


def environment(cache: Path = CACHE, python: str = sys.executable) -> Path:
    """The interpreter of the environment; made unless the cache has it whole.

    Raises:
        SystemExit: what pip said, where it cannot be made.
    """
    folder = cache.resolve() / REQUIREMENT
    interpreter, ready = folder / "bin/python", folder / "ready"
    if not ready.exists():
        print(f"installing {REQUIREMENT} into {folder}", file=sys.stderr, flush=True)
        _run([python, "-m", "venv", "--clear", str(folder)])
        _run([str(interpreter), "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
              REQUIREMENT, "numpy", "Pillow", "safetensors"])
        ready.touch()
    return interpreter


def add_environment_options(parser: argparse.ArgumentParser) -> None:
    """``--ort-python``, ``--cache``, ``--python``."""
    parser.add_argument("--ort-python", type=Path, metavar="PYTHON",
                        help=f"an interpreter that has {REQUIREMENT}; else one is made")
    parser.add_argument("--cache", type=Path, default=CACHE, help="where it is made and kept")
    parser.add_argument("--python", default=sys.executable,
                        help="what it is made of: CPython 3.8 to 3.11")


def chosen(options: argparse.Namespace) -> Path:
    """The interpreter that the options of :func:`add_environment_options` ask for."""
    given: Path | None = options.ort_python
    return given if given is not None else environment(options.cache, options.python)


def import_without_torch() -> None:
    """Makes ``onnxruntime.training.*`` importable, in the environment itself.

    Its ``__init__`` imports ORTModule, and that torch. A bare module that knows the folder stands
    in for it.
    """
    import onnxruntime

    if find_spec("torch") is not None:
        return
    package = types.ModuleType("onnxruntime.training")
    package.__path__ = [str(Path(onnxruntime.__file__).parent / "training")]
    sys.modules[package.__name__] = package
    onnxruntime.training = package


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_environment_options(parser)
    print(chosen(parser.parse_args()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
