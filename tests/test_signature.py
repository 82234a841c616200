"""Signed recipes: with a trusted key set, a box runs what the key's holder vouched for, or nothing new."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from helpers_daemon import Box, events_until, line_source, verdicts
from helpers_recipe import activate_version, rewrite_recipe, write_recipe

from calibrate.cli import main
from calibrate.sign import make_keys, sign
from inspectord.client import Heartbeat, Inspected
from inspectord.errors import RecipeError, SettingsError, StateError
from inspectord.last_good import start_with
from inspectord.recipe import active_recipe, load_recipe
from inspectord.settings import Camera, LineSource, Settings
from inspectord.signature import TrustedKey, read_signature


@pytest.fixture
def keys(tmp_path):
    make_keys(tmp_path / "keys")
    return tmp_path / "keys"


@pytest.fixture
def trusted(keys):
    return TrustedKey(keys / "signing.pub.pem")


@pytest.fixture
def recipes(tmp_path):
    """One version of demo, active, unsigned."""
    write_recipe(tmp_path / "recipes", version="0001")
    return tmp_path / "recipes"


@pytest.fixture
def box(tmp_path, recipes, keys):
    box = Box(tmp_path)
    box.config["security"]["trusted_key"] = "keys/signing.pub.pem"
    box.add_camera(line_source())
    yield box
    box.kill()


def test_a_signed_recipe_is_trusted_and_its_hash_is_unchanged(recipes, keys, trusted):
    before = load_recipe(recipes / "demo" / "0001").hash
    recipe, fingerprint = sign(recipes, "demo", None, keys / "signing.pem")
    assert active_recipe(recipes, "demo", trusted).hash == recipe.hash == before
    assert fingerprint == trusted.fingerprint


def test_an_unsigned_recipe_is_refused_with_the_next_step(recipes, trusted):
    with pytest.raises(RecipeError, match=r"not signed; use `calibrate sign demo 0001 --key PRIVATE`"):
        active_recipe(recipes, "demo", trusted)
    assert active_recipe(recipes, "demo").id == "demo/0001"


def test_another_key_is_refused_by_name(recipes, trusted, tmp_path):
    other = make_keys(tmp_path / "other")
    sign(recipes, "demo", "0001", tmp_path / "other" / "signing.pem")
    with pytest.raises(RecipeError, match=f"signed by {other[:16]}, trusted is {trusted.fingerprint[:16]}"):
        active_recipe(recipes, "demo", trusted)


def test_a_recipe_that_was_altered_and_hashed_again_is_refused(recipes, keys, trusted):
    """The hashes alone stop accidents; whoever alters a recipe can hash it again, but not sign it."""
    sign(recipes, "demo", "0001", keys / "signing.pem")
    rewrite_recipe(recipes / "demo" / "0001", limits={"score": 0.9})
    assert load_recipe(recipes / "demo" / "0001").spec.limits.score == 0.9
    with pytest.raises(RecipeError, match="its signature is not of these contents"):
        active_recipe(recipes, "demo", trusted)


def test_a_signature_in_the_trusted_name_by_another_key_is_refused(recipes, keys, trusted, tmp_path):
    sign(recipes, "demo", "0001", keys / "signing.pem")
    path = recipes / "demo" / "0001" / "signature"
    ours = json.loads(path.read_text())
    make_keys(tmp_path / "other")
    sign(recipes, "demo", "0001", tmp_path / "other" / "signing.pem")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"public_key": ours["public_key"]}))
    with pytest.raises(RecipeError, match="its signature is not of these contents"):
        active_recipe(recipes, "demo", trusted)


def test_a_signed_recipe_of_another_product_is_refused(recipes, keys, trusted):
    sign(recipes, "demo", "0001", keys / "signing.pem")
    shutil.copytree(recipes / "demo", recipes / "bracket", symlinks=True)
    with pytest.raises(RecipeError, match="is a recipe of 'demo', not of 'bracket'"):
        active_recipe(recipes, "bracket", trusted)


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", "null", '{"public_key": 1, "signature": 2}', "[" * 3000, "\ud800", "x" * 10_000]
)
def test_a_damaged_signature_is_one_clear_error(recipes, trusted, text):
    path = recipes / "demo" / "0001" / "signature"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    with pytest.raises(RecipeError, match=r"signature is damaged; sign the recipe again"):
        active_recipe(recipes, "demo", trusted)


def test_a_pipe_in_place_of_a_signature_is_not_waited_for(recipes, trusted):
    os.mkfifo(recipes / "demo" / "0001" / "signature")
    with pytest.raises(RecipeError, match="signature is damaged"):
        active_recipe(recipes, "demo", trusted)


def test_an_altered_recipe_is_not_signed(recipes, keys):
    with (recipes / "demo" / "0001" / "model.bin").open("ab") as file:
        file.write(b" ")
    with pytest.raises(RecipeError, match="changed after fitting"):
        sign(recipes, "demo", "0001", keys / "signing.pem")
    assert read_signature(recipes / "demo" / "0001") is None


def test_signing_again_replaces_the_signature_whole(recipes, keys, tmp_path):
    make_keys(tmp_path / "other")
    sign(recipes, "demo", "0001", tmp_path / "other" / "signing.pem")
    sign(recipes, "demo", "0001", keys / "signing.pem")
    folder = recipes / "demo" / "0001"
    assert read_signature(folder).fingerprint == TrustedKey(keys / "signing.pub.pem").fingerprint
    assert sorted(path.name for path in folder.iterdir() if "signature" in path.name) == ["signature"]


def test_the_private_key_is_for_its_owner_alone_and_never_overwritten(keys):
    assert stat.S_IMODE((keys / "signing.pem").stat().st_mode) == 0o600
    before = (keys / "signing.pem").read_bytes()
    with pytest.raises(StateError, match="there already"):
        make_keys(keys)
    assert (keys / "signing.pem").read_bytes() == before


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_keys_of_openssl_work_as_well(recipes, tmp_path):
    private, public = tmp_path / "a.pem", tmp_path / "a.pub.pem"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", private], check=True)
    subprocess.run(["openssl", "pkey", "-in", private, "-pubout", "-out", public], check=True)
    sign(recipes, "demo", None, private)
    assert active_recipe(recipes, "demo", TrustedKey(public)).id == "demo/0001"


@pytest.mark.parametrize(
    ("text", "why"), [(None, "can't read"), ("", "no public key"), ("no key", "no public key")]
)
def test_a_trusted_key_that_is_none_is_one_clear_error(tmp_path, text, why):
    path = tmp_path / "key.pem"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SettingsError, match=why):
        TrustedKey(path)


def test_a_key_of_another_kind_is_refused_by_both_sides(tmp_path, recipes):
    pem, key = serialization.Encoding.PEM, ec.generate_private_key(ec.SECP256R1())
    public = key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (tmp_path / "ec.pem").write_bytes(public)
    with pytest.raises(SettingsError, match="no Ed25519 key"):
        TrustedKey(tmp_path / "ec.pem")
    (tmp_path / "ec.pem").write_bytes(private)
    with pytest.raises(SettingsError, match="no Ed25519 key"):
        sign(recipes, "demo", None, tmp_path / "ec.pem")


def test_an_encrypted_key_says_how_to_use_it(tmp_path, recipes):
    encrypted = serialization.BestAvailableEncryption(b"secret")
    private = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encrypted
    )
    (tmp_path / "a.pem").write_bytes(private)
    with pytest.raises(SettingsError, match=r"is encrypted.*openssl pkey"):
        sign(recipes, "demo", None, tmp_path / "a.pem")


def test_the_private_key_is_no_trusted_key(keys):
    with pytest.raises(SettingsError, match="no public key"):
        TrustedKey(keys / "signing.pem")


def test_without_the_library_the_error_says_what_to_install(keys, monkeypatch):
    monkeypatch.setattr("inspectord.signature.has_library", lambda: False)
    with pytest.raises(SettingsError, match=r"pip install cryptography"):
        TrustedKey(keys / "signing.pub.pem")


def test_the_last_good_recipe_must_be_signed_too(recipes, trusted, keys, tmp_path):
    """A fall-back must not be the way around the signature."""
    camera = Camera(name="cam1", recipe="demo", source=LineSource(width=64, height=64))
    values = {"recipes_dir": recipes, "state_dir": tmp_path, "cameras": [camera], "inference": {"threads": 1}}
    kept = load_recipe(recipes / "demo" / "0001")
    (tmp_path / "last_good.json").write_text(
        json.dumps({"cam1": {"path": str(kept.path), "hash": kept.hash}})
    )
    security = {"trusted_key": keys / "signing.pub.pem"}
    settings = Settings(**values, on_broken_recipe="last_good", security=security)
    with pytest.raises(RecipeError, match="not signed"):
        start_with(camera, settings)
    sign(recipes, "demo", "0001", keys / "signing.pem")
    os.unlink(recipes / "demo" / "active")
    assert start_with(camera, settings)[0].recipe.hash == kept.hash


def test_check_and_run_refuse_an_unsigned_recipe_and_take_a_signed_one(box, recipes, keys):
    for command in ("check", "run"):
        done = box.run(command, "--config", str(box.config_path))
        assert done.returncode == 65
        assert "is not signed; use `calibrate sign demo 0001 --key PRIVATE`" in done.stderr
    sign(recipes, "demo", "0001", keys / "signing.pem")
    assert box.run("check", "--config", str(box.config_path)).returncode == 0


def test_a_reload_to_an_unsigned_recipe_is_refused_and_the_old_one_runs_on(box, recipes, keys):
    sign(recipes, "demo", "0001", keys / "signing.pem")
    box.start()
    with box.connect() as client:
        events_until(client, lambda event: isinstance(event, Inspected))
        write_recipe(recipes, version="0002", limit=0.9, activate=False)
        activate_version(recipes, "demo", "0002")
        box.signal(signal.SIGHUP)
        seen = events_until(
            client,
            lambda event: (
                isinstance(event, Heartbeat)
                and "not signed" in str(event.state["cameras"]["cam1"]["reload_error"])
            ),
        )
        assert {message.recipe for message in verdicts(seen)} <= {"demo/0001"}
        sign(recipes, "demo", "0002", keys / "signing.pem")
        box.signal(signal.SIGHUP)
        events_until(
            client, lambda event: isinstance(event, Inspected) and event.message.recipe == "demo/0002"
        )
    assert box.stop() == 0


def test_the_commands_tell_who_signed(recipes, keys, tmp_path, capsys):
    words = ["--recipes", str(recipes)]
    assert main(["show", "demo", *words]) == 0
    assert "signed:    by nobody" in capsys.readouterr().out
    assert main(["keygen", str(tmp_path / "new")]) == 0
    assert main(["sign", "demo", "--key", str(tmp_path / "new" / "signing.pem"), *words]) == 0
    fingerprint = TrustedKey(tmp_path / "new" / "signing.pub.pem").fingerprint
    assert f"is signed by {fingerprint}" in capsys.readouterr().out
    assert main(["show", "demo", *words]) == 0
    assert f"signed:    by {fingerprint}" in capsys.readouterr().out
    assert main(["list", *words]) == 0
    assert fingerprint[:16] in capsys.readouterr().out
    rewrite_recipe(recipes / "demo" / "0001", limits={"score": 0.9})
    assert main(["show", "demo", *words]) == 0
    assert "signed:    WRONGLY" in capsys.readouterr().out


@pytest.mark.parametrize(("text", "why"), [(None, "can't read the key"), ("no key", "no private key in PEM")])
def test_a_key_that_can_not_sign_is_one_line(recipes, tmp_path, capsys, text, why):
    path = tmp_path / "signing.pem"
    if text is not None:
        path.write_text(text)
    assert main(["sign", "demo", "--key", str(path), "--recipes", str(recipes)]) == 78
    assert why in capsys.readouterr().err
