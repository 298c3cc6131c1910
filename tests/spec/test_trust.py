"""Signatures: made, found, refused, and looked at before anything is parsed."""

from __future__ import annotations

import shutil
import stat
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s2a_edge.spec.bundle import Bundle
from s2a_edge.spec.errors import BundleError, BundleIntegrityError, SignatureError, UsageError
from s2a_edge.spec.signing_key import SigningKey, generate_key, load_key, sign_bundle
from s2a_edge.spec.trust import (
    MAX_SIGNATURES,
    SIGNATURE_NAME,
    TrustStore,
    format_signatures,
    parse_public_key,
    parse_signatures,
)
from tests.spec import bundle_samples


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the key pairs ``ours`` and ``theirs``."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("ours", "theirs"):
        generate_key(folder / name)
    return folder


@pytest.fixture(params=["b", "b.s2a"])
def bundle(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return bundle_samples.write_sample(tmp_path / str(request.param))


def sign(bundle: Path, keys: Path, name: str = "ours") -> None:
    sign_bundle(bundle, load_key(keys / f"{name}.key"))


def test_a_signed_bundle_opens_with_its_signers_key_and_without_any(
    bundle: Path, keys: Path
) -> None:
    sign(bundle, keys)
    for trust in (None, TrustStore.load(keys / "ours.pub"), TrustStore.load(keys)):
        with Bundle.open(bundle, trust=trust) as opened:
            assert opened.manifest == bundle_samples.manifest()
            assert opened.signature is not None


def test_unsigned_is_refused(bundle: Path, keys: Path) -> None:
    with pytest.raises(SignatureError, match="the bundle is not signed"):
        Bundle.open(bundle, trust=TrustStore.load(keys))


def test_a_stranger_is_refused_and_a_second_signer_helps(bundle: Path, keys: Path) -> None:
    ours = TrustStore.load(keys / "ours.pub")
    sign(bundle, keys, "theirs")
    with pytest.raises(SignatureError, match="unknown key"):
        Bundle.open(bundle, trust=ours)
    sign(bundle, keys)
    sign(bundle, keys)
    with Bundle.open(bundle, trust=ours) as opened:
        assert opened.signature is not None
        assert len(parse_signatures(opened.signature)) == 2


def test_a_stranger_who_claims_our_key_id_is_refused(keys: Path) -> None:
    ours, theirs = (load_key(keys / f"{name}.key") for name in ("ours", "theirs"))
    forged = theirs.sign(b"sums")
    claimed = format_signatures([type(forged)(ours.public.key_id, forged.raw)])
    with pytest.raises(SignatureError, match="over other bytes"):
        TrustStore.load(keys / "ours.pub").require(b"sums", claimed)


def test_what_is_signed_wrongly_is_not_parsed(tmp_path: Path, keys: Path) -> None:
    """Whatever stands in the manifest and the checksums, the signature decides first."""
    bundle = bundle_samples.write_sample(tmp_path / "b")
    sign(bundle, keys)
    (bundle / "manifest.json").write_text("[" * 100_000)
    (bundle / "SHA256SUMS").write_text("no checksums at all")
    with pytest.raises(SignatureError):
        Bundle.open(bundle, trust=TrustStore.load(keys))
    with pytest.raises(BundleError) as error:
        Bundle.open(bundle)
    assert not isinstance(error.value, SignatureError)


def test_a_signature_does_not_cover_for_changed_files(tmp_path: Path, keys: Path) -> None:
    bundle = bundle_samples.write_sample(tmp_path / "b")
    sign(bundle, keys)
    with (bundle / "weights.bin").open("r+b") as file:
        file.write(b"\1")
    with pytest.raises(BundleIntegrityError, match=r"weights\.bin"):
        Bundle.open(bundle, trust=TrustStore.load(keys))
    with pytest.raises(BundleIntegrityError, match=r"weights\.bin"):
        sign(bundle, keys)


def test_signing_a_damaged_tar_leaves_it_as_it_was(tmp_path: Path, keys: Path) -> None:
    bundle = bundle_samples.write_sample(tmp_path / "b.s2a")
    content = bytearray(bundle.read_bytes())
    with tarfile.open(bundle) as tar:
        content[tar.getmember("weights.bin").offset_data] ^= 1
    bundle.write_bytes(content)
    with pytest.raises(BundleIntegrityError, match=r"weights\.bin"):
        sign(bundle, keys)
    assert bundle.read_bytes() == content


def test_signing_a_tar_adds_one_member(tmp_path: Path, keys: Path) -> None:
    bundle = bundle_samples.write_sample(tmp_path / "b.s2a")
    with tarfile.open(bundle) as tar:
        before = {m.name: m.size for m in tar.getmembers()}
    sign(bundle, keys)
    with tarfile.open(bundle) as tar:
        after = {m.name: m.size for m in tar.getmembers()}
        assert list(after)[:3] == ["manifest.json", "SHA256SUMS", SIGNATURE_NAME]
    del after[SIGNATURE_NAME]
    assert after == before


def test_a_signature_that_is_a_link_or_too_large_is_refused(tmp_path: Path, keys: Path) -> None:
    bundle = bundle_samples.write_sample(tmp_path / "b")
    (bundle / SIGNATURE_NAME).write_bytes(b"x" * 5000)
    with pytest.raises(BundleIntegrityError, match="at most"):
        Bundle.open(bundle)
    (bundle / SIGNATURE_NAME).unlink()
    (bundle / SIGNATURE_NAME).symlink_to(keys / "ours.pub")
    with pytest.raises(BundleIntegrityError, match="a link"):
        Bundle.open(bundle)


def test_secret_keys_are_for_their_owner_and_openssl_reads_them(tmp_path: Path) -> None:
    secret, public = generate_key(tmp_path / "new")
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    key = load_key(secret)
    assert parse_public_key(public.read_text().strip(), "x") == key.public
    assert key.secret.hex() not in repr(key)
    with pytest.raises(UsageError, match="a file that exists"):
        generate_key(tmp_path / "new")
    secret.chmod(0o644)
    with pytest.raises(UsageError, match="chmod 600"):
        load_key(secret)
    if openssl := shutil.which("openssl"):
        command = [openssl, "pkey", "-in", str(secret), "-pubout", "-outform", "DER"]
        der = subprocess.run(command, check=True, capture_output=True).stdout
        assert der.endswith(key.public.raw)


@pytest.mark.parametrize("text", ["", "-----BEGIN PRIVATE KEY-----", "ed25519 AAAA", "\0" * 9000])
def test_what_is_no_key_is_said(tmp_path: Path, text: str) -> None:
    file = tmp_path / "k.key"
    file.write_text(text)
    file.chmod(0o600)
    with pytest.raises(UsageError, match="keygen"):
        load_key(file)
    with pytest.raises(UsageError, match=r"\.pub file"):
        TrustStore.load(file)


def test_only_so_many_may_sign(tmp_path: Path) -> None:
    bundle = bundle_samples.write_sample(tmp_path / "b")
    for number in range(MAX_SIGNATURES):
        sign_bundle(bundle, SigningKey(bytes([number]) * 32, "k"))
    before = (bundle / SIGNATURE_NAME).read_bytes()
    with pytest.raises(SignatureError, match="at most 16"):
        sign_bundle(bundle, SigningKey(b"\xff" * 32, "k"))
    assert (bundle / SIGNATURE_NAME).read_bytes() == before


@given(st.binary(max_size=300))
def test_any_bytes_are_a_signature_file_or_a_signature_error(content: bytes) -> None:
    try:
        assert format_signatures(parse_signatures(content)).strip() == content.strip()
    except SignatureError as error:
        assert error.where == SIGNATURE_NAME
