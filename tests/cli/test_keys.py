"""``keygen``, ``sign`` and ``--trust`` as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from s2a_edge.cli import app
from tests.spec import bundle_samples


def run(*arguments: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    return done.exit_code, done.stdout, done.stderr


def test_keygen_sign_check(tmp_path: Path) -> None:
    bundle = bundle_samples.write_sample(tmp_path / "b.s2a")
    code, out, _ = run("keygen", tmp_path / "me", "--json")
    assert code == 0
    key_id = json.loads(out)["key_id"]
    trust = ("--trust", tmp_path / "me.pub")
    code, _, err = run("check", bundle, *trust)
    assert code == 1
    assert err.startswith("error: SHA256SUMS.sig: expected a signature by a key of")
    code, out, _ = run("sign", bundle, "--key", tmp_path / "me.key")
    assert (code, out) == (0, f"{bundle}: signed by key {key_id}\n")
    assert run("check", bundle, *trust)[0] == 0


def test_trust_may_come_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = bundle_samples.write_sample(tmp_path / "b")
    run("keygen", tmp_path / "me")
    monkeypatch.setenv("S2A_EDGE_TRUST", str(tmp_path / "me.pub"))
    for command in (("check", bundle), ("train", bundle, "--data", "x", "--out", tmp_path / "r")):
        code, _, err = run(*command)
        assert (code, "the bundle is not signed" in err) == (1, True)
