from __future__ import annotations

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import ctypes
from s2a_edge.run.heap import return_freed_memory
from s2a_edge.run.process_memory import read_memory

assert return_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]

def block(size):
    pointer = libc.malloc(size)
    ctypes.memset(pointer, 1, size)
    return pointer

libc.free(block(24 << 20))             # would raise the mmap threshold to 24 MiB
before = read_memory().anon_bytes
blocks = [block(1 << 20) for _ in range(32)]
pin = block(1 << 10)                   # above them on the heap: it could not be trimmed
for pointer in blocks:
    libc.free(pointer)
print(read_memory().anon_bytes - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_large_blocks_go_back_to_the_system_when_freed() -> None:
    run = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 4 << 20
