"""Into a bare board through its login shell: push the program that then speaks the protocol.

The shell's terminal is told not to echo; the program goes as numbered lines of base64, each with a
CRC-32, into a few lines of Python, which ask for lines that were damaged again, compare the hash of
it all, keep it in a file and run it.
"""

from __future__ import annotations

import base64
import getpass
import hashlib
import re
import textwrap
import zlib

from s2a_edge.link.bare_main import READY
from s2a_edge.link.bare_package import build_bare_package
from s2a_edge.link.line_host import LineHost
from s2a_edge.link.serial_device import SerialDevice
from s2a_edge.link.target import DEFAULT_ROOT, Target
from s2a_edge.spec.errors import LinkError

_ATTEMPTS = 5
_PROMPT_WAIT_S = 2.0
_LINE_CHARS = 160  # a terminal takes 4095 at once; short lines lose little
_ROUNDS = 40  # in which lines are asked for again
_PROMPT = re.compile(rb"[$#>] ?$")
_LOGIN = re.compile(rb"login: ?$")
_PASSWORD = re.compile(rb"[Pp]assword: ?$")
_ASKED = b"s2a-edge: send"
_LACKS = re.compile(rb"s2a-edge: lacks ([0-9,]*);")
_STOP = "s2a-edge-stop"
# Runs on the board. Its terminal stays in line mode until the program that arrives changes that,
# but a letter that was damaged to Ctrl-C, Ctrl-S or Ctrl-D means nothing any more.
_LOADER = """
import base64, hashlib, os, signal, sys, tempfile, termios, zlib
saved, mine = termios.tcgetattr(0), termios.tcgetattr(0)
mine[0] &= ~(termios.IXON | termios.IXOFF)
mine[3] &= ~(termios.ISIG | termios.ECHO)
mine[6][termios.VEOF] = bytes(1)
signal.signal(signal.SIGALRM, lambda *_: sys.exit("s2a-edge: nothing came"))
have, count = {{}}, {count}
try:
    termios.tcsetattr(0, termios.TCSANOW, mine)
    print("s2a-edge: " + "send", flush=True)
    while True:
        signal.alarm(60)
        line = sys.stdin.buffer.readline()
        part = line.split()
        if len(part) == 3 and part[0].isdigit() and b"%08x" % zlib.crc32(part[2]) == part[1]:
            have[int(part[0])] = part[2]
        if line.strip() == b".":
            lacks = [str(n) for n in range(count) if n not in have]
            if not lacks:
                break
            print("s2a-edge: " + "lacks " + ",".join(lacks[:100]) + ";", flush=True)
        if not line or line.strip() == {stop!r}:
            sys.exit()
finally:
    signal.alarm(0)
    termios.tcsetattr(0, termios.TCSANOW, saved)
data = base64.b64decode(b"".join(have[n] for n in range(count)))
if hashlib.sha256(data).hexdigest() != {digest!r}:
    sys.exit("s2a-edge: other bytes than were sent")
# A new file that nobody else can write; what runs from it removes it at the end.
number, name = tempfile.mkstemp(".pyz", "s2a-edge-")
with open(number, "wb") as file:
    file.write(data)
os.execv(sys.executable, [sys.executable, name, "serve", {root!r}])
"""


def push_server(device: SerialDevice, host: LineHost, target: Target) -> None:
    """Log in where a login is asked for, and start the board's end of the protocol.

    Raises:
        LinkError: nobody answers, or what answers is no shell of a board with Python.
    """
    shell = _Shell(device, host, target)
    shell.reach_prompt()
    package = build_bare_package()
    for _ in range(_ATTEMPTS):
        if shell.push(package) and host.connect(3.0):
            return
    raise _refused(target, "the program did not arrive whole", "use a shorter or better cable")


class _Shell:
    def __init__(self, device: SerialDevice, host: LineHost, target: Target) -> None:
        self._device, self._end, self._target = device, host.end, target

    def reach_prompt(self) -> None:
        """Press return until a shell asks for a command, logging in on the way."""
        for _ in range(6):
            self._end.noise.clear()
            self._type("")
            said = self._wait_for(_PROMPT, _LOGIN, _PASSWORD, wait_s=_PROMPT_WAIT_S)
            if _LOGIN.search(said):
                self._log_in()
            elif _PROMPT.search(said) and not _PASSWORD.search(said):
                return
        got = ascii(bytes(self._end.noise[-60:]))[2:-1] or "nothing"
        raise _refused(
            self._target, got, "start `s2a-edge serve-serial` on the board, or check the speed"
        )

    def push(self, package: bytes) -> bool:
        """Send the program; whether it says that it runs."""
        lines = textwrap.wrap(base64.b64encode(package).decode(), _LINE_CHARS)
        lines = [f"{n} {zlib.crc32(x.encode()):08x} {x}" for n, x in enumerate(lines)]
        loader = _LOADER.format(
            count=len(lines),
            stop=_STOP.encode(),
            digest=hashlib.sha256(package).hexdigest(),
            root=self._target.options.get("root", DEFAULT_ROOT),
        )
        code = base64.b64encode(zlib.compress(loader.encode(), 9)).decode()
        run = f"import base64,zlib;exec(zlib.decompress(base64.b64decode('{code}')))"
        self._write(b"\x03\r")  # ends whatever a damaged attempt left behind
        for command in (_STOP, "", "stty -echo"):
            self._type(command)
            self._wait_for(_PROMPT, wait_s=1.0)
        self._end.noise.clear()
        self._type(f'python3 -c "{run}"; stty echo')
        if _ASKED not in self._wait_for(re.escape(_ASKED), _PROMPT, wait_s=10.0):
            return False
        return self._send_lines(lines)

    def _send_lines(self, lines: list[str]) -> bool:
        wanted = list(range(len(lines)))
        for _ in range(_ROUNDS):
            self._end.noise.clear()
            for number in wanted:
                self._type(lines[number])
            self._type("")  # ends a line whose end was damaged
            self._type(".")
            said = self._wait_for(_LACKS, re.escape(READY), _PROMPT, wait_s=10.0)
            lacks = _LACKS.search(said)
            if READY in said:
                return True
            if lacks is not None:
                numbers = [int(n) for n in lacks[1].split(b",") if n]
                wanted = [n for n in numbers if n < len(lines)]
            elif _PROMPT.search(said):
                return False  # the shell is back: it was no use
            else:
                wanted = []  # the answer was damaged: ask again
        return False

    def _log_in(self) -> None:
        user = self._target.options.get("user") or input("login on the board: ")
        self._end.noise.clear()
        self._type(user)
        if _PASSWORD.search(self._wait_for(_PASSWORD, _PROMPT, wait_s=5.0)):
            self._end.noise.clear()
            self._type(getpass.getpass(f"password of {user} on the board: "))
            self._wait_for(_PROMPT, _LOGIN, wait_s=10.0)

    def _type(self, line: str) -> None:
        self._write(line.encode() + b"\r")

    def _write(self, data: bytes) -> None:
        while data:
            data = data[self._device.write(data) :]
            self._end.pump(0.01)

    def _wait_for(self, *patterns: re.Pattern[bytes] | bytes, wait_s: float) -> bytes:
        """What came, as soon as it matches a pattern, or when time is up."""
        end_s = self._end.clock() + wait_s
        while self._end.clock() < end_s:
            self._end.pump(0.05)
            said = bytes(self._end.noise)
            if any(re.search(pattern, said) for pattern in patterns):
                return said
        return bytes(self._end.noise)


def _refused(target: Target, got: str, todo: str) -> LinkError:
    return LinkError(
        where=target.text, expected="a board that speaks, or its shell", got=got, todo=todo
    )
