"""``ssh://[user@]host[:port]/path``: a board that runs an ssh server.

Requests go to the board's agent over one ssh command each; files with rsync where both sides have
it, else with sftp, else as a tar over ssh. On the board the agent is run by the Python that
``?python=`` names, or else by ``ROOT/venv/bin/python`` or ``python3``, from the package that
``--with-runtime`` put there or from what is installed; or it is the ``s2a-edge`` command. A board
without any of them still takes files, with a small program of the standard library that is copied
there first.
"""

from __future__ import annotations

import hashlib
import shlex
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from s2a_edge.link.bare_package import build_bare_package
from s2a_edge.link.heard_process import HeardProcess
from s2a_edge.link.messages import MAX_MESSAGE_BYTES, OnNote, Request, decode, encode, result
from s2a_edge.link.ssh_command import SshCommand
from s2a_edge.link.ssh_send import SshSender
from s2a_edge.link.target import Target
from s2a_edge.link.transport import Incoming, OnBytes, Outgoing, Transport
from s2a_edge.spec.errors import LinkError, S2AError
from s2a_edge.spec.storage import storage_errors

_MARK = "s2a-edge-probe"


class SshTransport(Transport):
    """A board behind the system's OpenSSH client.

    Args:
        target: an ssh target.

    Raises:
        LinkError: it cannot be reached.
    """

    def __init__(self, target: Target) -> None:
        self.target = target.text
        self._python = target.options.get("python")
        self._ssh = SshCommand(target)
        self._agent_line: str | None = None
        try:
            found = self._ssh.run(f'echo {_MARK}; echo "$HOME"; command -v rsync; true')
            said = found.decode("utf-8", "replace").partition(f"{_MARK}\n")[2].splitlines()
        except S2AError:
            self.close()
            raise
        home = said[0] if said else "/"
        self.root = target.root.replace("~", home, 1) if target.root[:2] == "~/" else target.root
        self.ways = ["sftp", "tar"]
        if len(said) > 1 and shutil.which("rsync"):
            self.ways.insert(0, "rsync")

    def close(self) -> None:
        """End the connection."""
        self._ssh.close()

    def call(self, request: Request, on_note: OnNote) -> Any:
        """One ssh command."""
        line = self._ssh.ssh(self._agent())
        with HeardProcess(line, has_input=True, has_output=True) as process:
            answer = _converse(process, encode(request), on_note)
            code, stderr = process.end()
        if request.get("op") == "runtime":
            self._agent_line = None  # what has been unpacked there is used from now on
        if answer is None:
            raise self._ssh.failure(stderr, code)
        return result(answer)

    def send(self, files: Sequence[Outgoing], on_bytes: OnBytes) -> None:
        """With the first way that both sides have."""
        with tempfile.TemporaryDirectory(prefix="s2a-") as name:
            folder = Path(name)
            for outgoing in files:
                (folder / outgoing.blob.sha256).symlink_to(outgoing.path.resolve())
            sender = SshSender(self._ssh, f"{self.root}/incoming")
            ways = {"rsync": sender.with_rsync, "sftp": sender.with_sftp, "tar": sender.with_tar}
            for way in self.ways:
                if ways[way](folder, files, on_bytes):
                    return
        raise LinkError(
            where=self.target,
            expected="rsync, sftp or tar on the board",
            got="none of them",
            todo="install rsync or tar there",
        )

    def fetch(self, files: Sequence[Incoming], on_bytes: OnBytes) -> None:
        """With ``head``: a log that has grown meanwhile is still what was announced."""
        for incoming in files:
            path = shlex.quote(f"{self.root}/{incoming.path}")
            command = self._ssh.ssh(f"head -c {incoming.blob.size_bytes} < {path}")
            with (
                storage_errors(incoming.target, "to write what comes from the board"),
                incoming.target.open("wb") as out,
                HeardProcess(command, has_output=True) as process,
            ):
                while chunk := process.stdout.read1(65_536):
                    incoming.require_room(out.tell() + len(chunk))
                    out.write(chunk)
                    on_bytes(len(chunk))
                code, stderr = process.end()
            if code != 0:
                raise self._ssh.failure(stderr, code)

    def _agent(self) -> str:
        """The shell command that answers one request on the board."""
        if self._agent_line is None:
            self._agent_line = self._find_agent()
        return self._agent_line

    def _find_agent(self) -> str:
        root = shlex.quote(self.root)
        venv, runtime = f"{root}/venv/bin/python", f"PYTHONPATH={root}/runtime"
        pythons = [shlex.quote(self._python)] if self._python else [venv, "python3"]
        module = "-m s2a_edge.link.agent"
        candidates = {
            f"{runtime} {python} {module} {root}": f"test -d {root}/runtime && "
            f"{runtime} {python} -c {_IMPORT}"
            for python in pythons
        }
        candidates |= {f"{python} {module} {root}": f"{python} -c {_IMPORT}" for python in pythons}
        if not self._python:
            candidates[f"s2a-edge agent {root}"] = "command -v s2a-edge"
        chain = " || ".join(
            f"({test}) >/dev/null 2>&1 && echo {n}" for n, test in enumerate(candidates.values())
        )
        said = self._ssh.run(f"({chain}) | head -n 1; true").split()
        number = said[-1].decode("ascii", "replace") if said else ""
        return list(candidates)[int(number)] if number.isdecimal() else self._push_bare(root)

    def _push_bare(self, root: str) -> str:
        """Copy the small program to a board that has no s2a-edge; the command that runs it."""
        package = build_bare_package()
        name = f"{root}/.bare-{hashlib.sha256(package).hexdigest()[:12]}.pyz"
        python = shlex.quote(self._python) if self._python else "python3"
        self._ssh.run(f"mkdir -p {root} && cat > {name}.tmp && mv {name}.tmp {name}", package)
        return f"{python} {name} agent {root}"


_IMPORT = shlex.quote("import s2a_edge.link.agent")


def _converse(process: HeardProcess, request: bytes, on_note: OnNote) -> Request | None:
    """Write a request and read until its answer; None where none came."""
    try:
        process.stdin.write(request)
        process.stdin.close()
    except BrokenPipeError:
        return None
    answer = None
    while line := process.stdout.readline(MAX_MESSAGE_BYTES + 1):
        try:
            message = decode(line)
        except LinkError:
            continue  # what a login script prints
        if "note" in message:
            on_note(str(message["note"])[:200])
        elif "ok" in message:
            answer = message
    return answer
