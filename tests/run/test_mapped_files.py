from __future__ import annotations

from pathlib import Path

import numpy as np

from s2a_edge.run.mapped_files import resident_bytes
from s2a_edge.spec.units import KIB, MIB

SMAPS = """\
55d0-55d1 r--p 00000000 08:01 12 /bundle/weights.bin
Size:              4 kB
Rss:               8 kB
Pss:               4 kB
7f10-7f20 r--s 00001000 08:01 12                         /bundle/weights.bin
Rss:             100 kB
VmFlags: rd mr
7f20-7f30 rw-p 00000000 00:00 0
Rss:            9999 kB
7f30-7f40 r-xp 00000000 08:01 99 /opt/ort/libonnxruntime.so with spaces
Rss:            5000 kB
"""


def test_the_mappings_of_one_file_are_added_up(tmp_path: Path) -> None:
    smaps = tmp_path / "smaps"
    smaps.write_text(SMAPS)
    assert resident_bytes(Path("/bundle/weights.bin"), smaps=smaps) == 108 * KIB
    library = Path("/opt/ort/libonnxruntime.so with spaces")
    assert resident_bytes(library, smaps=smaps) == 5000 * KIB
    assert resident_bytes(Path("/bundle/other.bin"), smaps=smaps) == 0


def test_a_system_without_smaps_says_zero(tmp_path: Path) -> None:
    assert resident_bytes(Path("/x"), smaps=tmp_path / "none") == 0


def test_pages_count_once_they_are_touched(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(b"\1" * (4 * MIB))
    mapped = np.memmap(path, np.uint8, "r")
    before_bytes = resident_bytes(path)
    assert int(mapped.sum()) == 4 * MIB
    assert resident_bytes(path) == 4 * MIB
    assert before_bytes < 4 * MIB
