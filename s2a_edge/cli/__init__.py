"""The ``s2a-edge`` command: parse, call, print, exit code; no logic."""
