"""``s2a-edge keygen`` and ``s2a-edge sign``: keys, and bundles signed with them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from s2a_edge.cli.output import Json, Output, Quiet


def keygen(
    name: Annotated[Path, typer.Argument(help="Writes NAME.key (secret) and NAME.pub.")],
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make a key pair for signing bundles."""
    from s2a_edge.spec.signing_key import generate_key, load_key

    output = Output(as_json=as_json, quiet=quiet)
    secret, public = generate_key(name)
    key = load_key(secret).public
    output.show(
        f"{secret}: the secret key; keep it on the host that packs",
        f"{public}: the public key {key.key_id}; for --trust, and for the trust folder of boards",
    )
    output.result({"secret": secret, "public": public, "key_id": key.key_id, "line": key.line()})


def sign(
    bundle: Annotated[Path, typer.Argument(help="A bundle: a folder or a .s2a file.")],
    key: Annotated[Path, typer.Option("--key", "-k", help="Secret key, as keygen wrote it.")],
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Sign a bundle; signatures of other keys stay."""
    from s2a_edge.spec.signing_key import load_key, sign_bundle

    output = Output(as_json=as_json, quiet=quiet)
    made = sign_bundle(bundle, load_key(key))
    output.show(f"{bundle}: signed by key {made.key_id}")
    output.result({"bundle": bundle, "key_id": made.key_id})
