"""The part of s2a-edge that a bare board runs, as one zip that ``python3 FILE`` starts.

Its modules need nothing but the standard library of Python 3.9 or newer.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

BARE_MODULES = (
    "spec/errors.py",
    "spec/storage.py",
    "link/board_folder.py",
    "link/blobs.py",
    "link/messages.py",
    "link/offered.py",
    "link/given_file.py",
    "link/framing.py",
    "link/channel_frames.py",
    "link/sender.py",
    "link/receiver.py",
    "link/channel.py",
    "link/stream_messages.py",
    "link/line.py",
    "link/agent_process.py",
    "link/line_server.py",
    "link/bare_agent.py",
    "link/bare_main.py",
)
_PACKAGE = Path(__file__).resolve().parent.parent
_MAIN = b"from s2a_edge.link.bare_main import main\n\nmain()\n"
_DATE = (1980, 1, 1, 0, 0, 0)  # the same content is always the same bytes


def build_bare_package() -> bytes:
    """The zip: ``python3 FILE agent ROOT`` answers one request, ``serve`` a whole terminal."""
    files = {"__main__.py": _MAIN}
    # The real __init__.py files would load more than there is.
    files |= {f"s2a_edge/{name}__init__.py": b"" for name in ("", "spec/", "link/")}
    files |= {f"s2a_edge/{name}": (_PACKAGE / name).read_bytes() for name in BARE_MODULES}
    return make_zip(files)


def build_runtime() -> bytes:
    """All that trains on a board, without the packer: what ``flash --with-runtime`` sends."""
    files = {}
    for path in sorted(_PACKAGE.rglob("*")):
        name = path.relative_to(_PACKAGE)
        # Kernels in C go as sources: the board compiles them for itself.
        is_code = path.suffix in (".py", ".toml", ".c", ".h") and "__pycache__" not in name.parts
        # The package marker of pack/ stays: s2a_edge/__init__.py asks for it.
        if is_code and (name.parts[0] != "pack" or str(name) == "pack/__init__.py"):
            files[f"s2a_edge/{name}"] = path.read_bytes()
    profiles = _PACKAGE.parent / "device_profiles"  # of a checkout; installed, they are inside
    for path in sorted(profiles.glob("*.toml")):
        files.setdefault(f"s2a_edge/device_profiles/{path.name}", path.read_bytes())
    return make_zip(files)


def make_zip(files: dict[str, bytes]) -> bytes:
    """A zip of files by name."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            info = zipfile.ZipInfo(name, _DATE)
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, content)
    return out.getvalue()
