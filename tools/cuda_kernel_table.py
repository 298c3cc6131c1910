"""Adds a version of ONNX Runtime to the table of CUDA kernels (s2a_edge/pack/cuda_kernels.json).

    python -m tools.cuda_kernel_table OperatorKernels.md --version 1.22 --source "tag v1.22.0"
    python -m tools.cuda_kernel_table probed.json --version 1.31 --source "wheel 1.31.1"

The first reads docs/OperatorKernels.md of the runtime's sources, which their build generates from
the registered kernels. The second reads what ``tools/cuda_without_gpu.py`` found a wheel's provider
to accept: only the forms that were tried are then in the table.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path

TABLE = Path(__file__).parent.parent / "s2a_edge" / "pack" / "cuda_kernels.json"
FIRST_OPSET, LAST_OPSET = 18, 21  # of the graphs that pack writes
_DOMAINS = {"ai.onnx": "", "com.microsoft": "com.microsoft"}
_TITLE = "## Operators implemented by "
Row = tuple[str, str, int, int | None]
Types = dict[str, set[str]]


def documented(text: str) -> dict[Row, list[Types]]:
    """The kernels of the CUDA provider that a document lists, by operator and opsets.

    Raises:
        ValueError: it has no such section, or a line that is no row of a table.
    """
    sections = text.split(_TITLE)
    section = next((s for s in sections if s.startswith("CUDAExecutionProvider")), None)
    if section is None:
        raise ValueError("no section on the CUDAExecutionProvider")
    found: dict[Row, list[Types]] = {}
    for row, types in _rows(section):
        found.setdefault(row, []).append(types)
    return found


def _rows(section: str) -> Iterator[tuple[Row, Types]]:
    domain, op_type = "", ""
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")] if (
            line.startswith("|")) else []
        title = re.match(r"\|\*\*Operator Domain:\*\* \*(.+?)\*", line)
        if title:
            domain = title[1]
        elif len(cells) == 4 or (line.startswith("|||") and len(cells) == 2):
            op_type = (cells[0] or op_type) if len(cells) == 4 else op_type
            if domain in _DOMAINS and op_type and re.match(r"[\[\d]", cells[-2]):
                first, last = _opsets(cells[-2])
                if _is_wanted(domain, first, last):
                    yield (_DOMAINS[domain], op_type, first, last), _types(cells[-1])


def _is_wanted(domain: str, first: int, last: int | None) -> bool:
    return bool(domain != "ai.onnx" or (
        first <= LAST_OPSET and (last is None or last >= FIRST_OPSET)))


def _opsets(text: str) -> tuple[int, int | None]:
    """``13+``: from 13 on; ``[6, 12]``: 6 to 12; ``13``: 13 alone."""
    numbers = [int(n) for n in re.findall(r"\d+", text)]
    return numbers[0], None if text.endswith("+") else numbers[-1]


def _types(text: str) -> Types:
    parts = re.findall(r"\*\*(\w+)\*\* = (.*?)(?:<br/>|$)", text)
    return {name: set(re.findall(r"tensor\((\w+)\)", kinds)) for name, kinds in parts}


def probed(text: str) -> dict[Row, list[Types]]:
    """The kernels that a provider was seen to have, as ``tools/cuda_without_gpu.py`` wrote them."""
    found: dict[Row, list[Types]] = {}
    for domain, op_type, since, types in json.loads(text):
        found.setdefault((domain, op_type, since, since), []).append(
            {name: set(kinds.split()) for name, kinds in types.items()})
    return found


def merged(table: dict[str, object], version: str, source: str,
           rows: dict[Row, list[Types]]) -> dict[str, object]:
    """``table`` with ``version``'s kernels instead of those it had of it."""
    known: dict[tuple[object, ...], set[str]] = {}
    for *kernel, types, names in table.get("kernels", []):  # type: ignore[attr-defined]  # from JSON
        key = (*kernel, json.dumps(types, sort_keys=True))
        known.setdefault(key, set()).update(set(names.split()) - {version})
    for row, variants in rows.items():
        for types in variants:
            joined = {name: " ".join(sorted(kinds)) for name, kinds in types.items()}
            known.setdefault((*row, json.dumps(joined, sort_keys=True)), set()).add(version)
    versions = {**table.get("versions", {}), version: source}  # type: ignore[dict-item]  # from JSON
    kept = [[*key[:4], json.loads(str(key[4])), " ".join(sorted(names))]
            for key, names in known.items() if names]
    return {"versions": dict(sorted(versions.items())),
            "kernels": sorted(kept, key=lambda k: json.dumps(k))}


def written(table: dict[str, object]) -> str:
    """One kernel a line."""
    lines = ",\n".join(json.dumps(row) for row in table["kernels"])  # type: ignore[attr-defined]
    return f'{{"versions": {json.dumps(table["versions"], indent=1)},\n"kernels": [\n{lines}\n]}}\n'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--version", required=True, help="major and minor number")
    parser.add_argument("--source", required=True, help="where the file is from")
    given = parser.parse_args()
    text = given.file.read_text(encoding="utf-8")
    rows = probed(text) if given.file.suffix == ".json" else documented(text)
    before = json.loads(TABLE.read_text(encoding="utf-8")) if TABLE.exists() else {}
    TABLE.write_text(written(merged(before, given.version, given.source, rows)), encoding="utf-8")
    print(f"{sum(map(len, rows.values()))} kernels of {given.version}")


if __name__ == "__main__":
    main()
