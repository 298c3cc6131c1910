"""What a bare board gets runs on a Python without anything."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

from s2a_edge.link.bare_package import BARE_MODULES, build_bare_package, build_runtime

PACKAGE = Path(__file__).resolve().parent.parent.parent / "s2a_edge"


def ask(program: Path, root: Path, request: dict[str, object]) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(program), "agent", str(root)],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        check=True,
    )
    value = json.loads(done.stdout.splitlines()[-1])
    assert isinstance(value, dict)
    return value


def test_it_answers_without_any_package(tmp_path: Path) -> None:
    program = tmp_path / "s2a.pyz"
    program.write_bytes(build_bare_package())
    assert ask(program, tmp_path, {"op": "hello"})["ok"] is True
    held = ask(program, tmp_path / "board", {"op": "held", "blobs": [["0" * 64, 5]]})
    assert held == {"ok": True, "value": {"0" * 64: 0}}
    answer = ask(program, tmp_path, {"op": "install"})
    assert "--with-runtime" in str(answer["error"])


def test_its_modules_import_only_the_standard_library_and_one_another() -> None:
    names = {f"s2a_edge.{m.removesuffix('.py').replace('/', '.')}" for m in BARE_MODULES}
    for module in BARE_MODULES:
        tree = ast.parse((PACKAGE / module).read_text(), feature_version=(3, 9))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                top = node.module.partition(".")[0]
                local = node.module in names or all(
                    f"{node.module}.{alias.name}" in names for alias in node.names
                )
                # framing.py uses cobs where it is there.
                assert top in sys.stdlib_module_names or local or top == "cobs", (module, top)


def test_the_same_code_is_the_same_bytes_and_holds_no_packer() -> None:
    assert build_bare_package() == build_bare_package()
    runtime = build_runtime()
    assert runtime == build_runtime()
    assert b"s2a_edge/run/trainer.py" in runtime
    assert b"s2a_edge/device_profiles/" in runtime
    assert b"s2a_edge/pack/emit.py" not in runtime
    sources = sorted((PACKAGE / "native").glob("*.[ch]"))
    assert sources
    assert all(f"s2a_edge/native/{path.name}".encode() in runtime for path in sources)
