from __future__ import annotations

import pytest

from s2a_edge.link.target import local_folder, parse_target
from s2a_edge.spec.errors import UsageError


@pytest.mark.parametrize(
    ("text", "user", "host", "port", "root"),
    [
        ("ssh://board/~/x", None, "board", None, "~/x"),
        ("ssh://me@board:2222/srv/x y", "me", "board", 2222, "/srv/x y"),
        ("ssh://me@[fe80::1]:22/", "me", "fe80::1", 22, "~/s2a-edge"),
        ("ssh://first.last@orin-1.lan", "first.last", "orin-1.lan", None, "~/s2a-edge"),
    ],
)
def test_ssh_targets(text: str, user: str | None, host: str, port: int | None, root: str) -> None:
    found = parse_target(text)
    assert (found.user, found.host, found.port, found.root) == (user, host, port, root)


@pytest.mark.parametrize(
    "text",
    [
        "ssh://board:0/x",
        "ssh://board:65536/x",
        "ssh://$(reboot)/x",
        "ssh://`reboot`@board/x",
        "ssh://a;b/x",
        "ssh://a%20b/x",
        "ssh://me%0a@board/x",
        "ssh://%2doProxyCommand=x/y",
        "serial:/dev/ttyACM0?root=~bob/x",
        "serial:/dev/ttyACM0?root=relative",
    ],
)
def test_what_a_shell_or_ssh_would_take_for_something_else(text: str) -> None:
    with pytest.raises(UsageError, match=r"^target "):
        parse_target(text)


def test_a_user_that_is_not_here() -> None:
    with pytest.raises(UsageError, match="a user of this machine"):
        local_folder("~no-such-user-here/board")
