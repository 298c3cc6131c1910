"""How much of each mapped file is resident in this process.

Tells mapped weights, which the kernel may drop and read again, from the code of libraries.

Source: ``proc_pid_smaps(5)``.
"""

from __future__ import annotations

from pathlib import Path

from s2a_edge.spec.units import KIB


def resident_bytes(file: Path, *, smaps: Path = Path("/proc/self/smaps")) -> int:
    """Resident bytes of all mappings of ``file``; each mapping counts, as in ``RssFile``.

    Args:
        file: the mapped file.
        smaps: where the kernel lists the mappings; 0 is returned where it does not.
    """
    wanted = str(file.resolve())
    total_bytes, inside = 0, False
    try:
        with smaps.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                words = line.split(maxsplit=5)
                if words and "-" in words[0] and not words[0].endswith(":"):
                    inside = len(words) == 6 and words[5].rstrip("\n") == wanted
                elif inside and words and words[0] == "Rss:":
                    total_bytes += int(words[1]) * KIB
    except OSError:
        return 0
    return total_bytes
