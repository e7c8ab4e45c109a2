"""Compiling again: from the cache, for several targets at once, to verify a bundle; and signing one."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

import small_models
from compiler.bundle import layout
from fleet.bundle.manifest import ROLE, Role
from processes import KEDGE
from small_models import SmallModel

MODEL_SIGNING = Path(KEDGE).with_name("model_signing")


def kedge(*arguments: object, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [KEDGE, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )
    assert done.returncode == code, done.stderr
    return done


def data(files: SmallModel) -> tuple[object, ...]:
    return "--calibration", files.calibration, "--evaluation", files.evaluation


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> SmallModel:
    return small_models.write(tmp_path_factory.mktemp("again"))


@pytest.fixture(scope="module")
def bundle(files: SmallModel) -> Path:
    out = files.model.parent / "one.bundle"
    kedge("compile", files.model, "--target", "laptop-x86", *data(files), "--out", out, "--no-cache")
    return out


def digest(bundle: Path) -> str:
    found: str = json.loads(kedge("inspect", bundle, "--json").stdout)["digest"]
    return found


def test_the_second_run_is_instant_and_gives_the_same_bundle(files: SmallModel, tmp_path: Path) -> None:
    """A pipeline in CI compiles on every push, and the model changes once a month."""
    command = ("compile", files.model, "--target", "laptop-x86", *data(files), "--name", "often", "--json")
    started = time.monotonic()
    first = json.loads(kedge(*command, "--out", tmp_path / "a").stdout)
    between = time.monotonic()
    second = json.loads(kedge(*command, "--out", tmp_path / "b").stdout)
    again = time.monotonic() - between
    assert (first["cached"], second["cached"]) == (False, True)
    assert second["bundle"]["path"] == str(tmp_path / "b")
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    assert again < 0.75 * (between - started)
    assert again < 3


def test_another_file_option_or_cache_is_another_question(files: SmallModel, tmp_path: Path) -> None:
    command = ("compile", files.model, "--target", "laptop-x86", "--candidate", "dynamic", "--json", "--out")
    swapped = ("--calibration", files.evaluation, "--evaluation", files.evaluation)
    asked: list[tuple[str, tuple[object, ...]]] = [
        ("one", data(files)),
        ("one", (*data(files), "--licence", "MIT")),
        ("one", swapped),
        ("two", data(files)),
        ("one", data(files)),
    ]
    cached = []
    for number, (cache, options) in enumerate(asked):
        done = kedge(*command, tmp_path / f"{number}", *options, KEDGE_CACHE=str(tmp_path / cache))
        cached.append(json.loads(done.stdout)["cached"])
    assert cached == [False, False, False, False, True]


def test_a_damaged_cache_only_costs_time(files: SmallModel, tmp_path: Path) -> None:
    command = ("compile", files.model, "--target", "laptop-x86", *data(files), "--candidate", "dynamic")
    cache = tmp_path / "cache"
    kedge(*command, "--out", tmp_path / "a", KEDGE_CACHE=str(cache))
    for path in cache.rglob("*"):
        if path.is_file():
            path.write_bytes(b"zeros")
    done = kedge(*command, "--out", tmp_path / "b", "--json", KEDGE_CACHE=str(cache))
    assert json.loads(done.stdout)["cached"] is False
    assert digest(tmp_path / "a") == digest(tmp_path / "b")


def test_several_targets_give_a_bundle_each_and_one_table(files: SmallModel, tmp_path: Path) -> None:
    done = kedge(
        *("compile", files.model, "--target", "laptop-*", "--target", "raspberry-pi5", *data(files)),
        *("--candidate", "static-channel-mse", "--out", tmp_path, "--json"),
    )
    outcomes: list[dict[str, Any]] = json.loads(done.stdout)["targets"]
    assert [x["target"] for x in outcomes] == ["laptop-arm64", "laptop-x86", "raspberry-pi5"]
    for x in outcomes:
        assert digest(Path(x["result"]["bundle"]["path"])) == x["result"]["bundle"]["digest"]
    assert {x.name for x in tmp_path.iterdir()} == {f"small-{x['target']}.bundle" for x in outcomes}


def test_one_of_several_fails_and_the_exit_code_says_so(files: SmallModel, tmp_path: Path) -> None:
    """A script that ships whatever came out must not take four of five for five."""
    (tmp_path / "small-laptop-arm64.bundle").mkdir()
    (tmp_path / "small-laptop-arm64.bundle" / "mine.txt").write_text("x")
    only = ("--candidate", "static-channel-mse", "--out", tmp_path)
    done = kedge("compile", files.model, "--target", "laptop-*", *data(files), *only, code=2)
    assert "1 of 2 targets failed: laptop-arm64" in done.stderr
    assert "laptop-arm64: " in done.stderr
    assert "holds something else" in done.stderr
    assert digest(tmp_path / "small-laptop-x86.bundle")


def test_a_bundle_built_again_is_the_same(files: SmallModel, bundle: Path) -> None:
    done = kedge("compile", files.model, "--verify", bundle, *data(files), "--json")
    found = json.loads(done.stdout)
    assert found["same"] is True
    assert found["digest"] == found["rebuilt"] == digest(bundle)
    assert found["different"] == []


def test_other_data_are_not_what_the_bundle_was_made_from(files: SmallModel, bundle: Path) -> None:
    swapped = ("--calibration", files.evaluation, "--evaluation", files.evaluation)
    done = kedge("compile", files.model, "--verify", bundle, *swapped, code=2)
    assert "expected the calibration of digest" in done.stderr


def test_a_provenance_of_things_that_there_never_were_is_no_bug(
    files: SmallModel, bundle: Path, tmp_path: Path
) -> None:
    """A forged bundle, whole by its digests, names a further input that no compilation has."""
    opened = layout.read(bundle)
    forged = json.loads(opened.bytes_of("provenance.json"))
    forged["predicate"]["buildDefinition"]["externalParameters"]["candidate"] = "float"
    forged["predicate"]["buildDefinition"]["internalParameters"]["confirmed"] = []
    depends = forged["predicate"]["buildDefinition"]["resolvedDependencies"]
    depends.append({"name": "luck", "digest": {"sha256": "0"}})
    parts = {x.path: (Role(x.annotations[ROLE]), opened.bytes_of(x.path)) for x in opened.manifest.layers}
    parts["provenance.json"] = (Role.PROVENANCE, json.dumps(forged).encode())
    layout.write(tmp_path / "forged", parts, b"{}", {})
    done = kedge("compile", files.model, "--verify", tmp_path / "forged", *data(files), code=2)
    assert "expected the luck of digest 0; got none" in done.stderr


def test_an_altered_bundle_is_refused_before_it_is_built_again(
    files: SmallModel, bundle: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.bundle"
    subprocess.run(["cp", "-r", bundle, copy], check=True)
    blob = max((copy / "blobs" / "sha256").iterdir(), key=lambda x: x.stat().st_size)
    blob.write_bytes(blob.read_bytes()[:-1] + b"x")
    done = kedge("compile", files.model, "--verify", copy, *data(files), code=2)
    assert "expected sha256:" in done.stderr


@pytest.mark.parametrize("more", [[], ["--target", "laptop-x86", "--verify", "B"]])
def test_a_target_or_a_bundle_to_verify_is_needed(files: SmallModel, bundle: Path, more: list[str]) -> None:
    arguments = [str(bundle) if x == "B" else x for x in more]
    done = kedge("compile", files.model, *data(files), *arguments, code=2)
    assert done.stderr.startswith("error: expected --target or --verify; got ")


def key(folder: Path, private: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> tuple[Path, Path]:
    """Write a private and a public key as PEM."""
    secret, public = folder / "key.pem", folder / "key.pub"
    secret.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"open sesame"),
        )
    )
    public.write_bytes(
        private.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    (folder / "password").write_text("open sesame\n")
    return secret, public


def test_a_signed_bundle_verifies_here_and_with_openssfs_own_tool(bundle: Path, tmp_path: Path) -> None:
    secret, public = key(tmp_path, ec.generate_private_key(ec.SECP256R1()))
    copy = tmp_path / "signed.bundle"
    subprocess.run(["cp", "-r", bundle, copy], check=True)
    kedge("sign", copy, "--key", secret, "--password-file", tmp_path / "password")
    assert (
        json.loads(kedge("inspect", copy, "--public-key", public, "--json").stdout)["signature"] == "verified"
    )
    assert json.loads(kedge("inspect", copy, "--json").stdout)["signature"] == "not checked"
    theirs = subprocess.run(
        [MODEL_SIGNING, "verify", "key", copy, "--signature", copy / "model.sig", "--public_key", public],
        capture_output=True,
        text=True,
        check=False,
    )
    assert theirs.returncode == 0, theirs.stderr
    assert digest(copy) == digest(bundle)


def test_another_keys_signature_does_not_verify(bundle: Path, tmp_path: Path) -> None:
    """Whoever can write to the store can sign; only not with the engineer's key."""
    secret, _ = key(tmp_path, ec.generate_private_key(ec.SECP384R1()))
    (tmp_path / "other").mkdir()
    _, public = key(tmp_path / "other", ec.generate_private_key(ec.SECP384R1()))
    copy = tmp_path / "signed.bundle"
    subprocess.run(["cp", "-r", bundle, copy], check=True)
    kedge("sign", copy, "--key", secret, "--password-file", tmp_path / "password")
    done = kedge("inspect", copy, "--public-key", public, code=2)
    assert "does not verify" in done.stderr


def test_a_key_that_cannot_sign_and_no_signature_are_said_in_one_line(bundle: Path, tmp_path: Path) -> None:
    secret, public = key(tmp_path, ed25519.Ed25519PrivateKey.generate())
    done = kedge("sign", bundle, "--key", secret, "--password-file", tmp_path / "password", code=2)
    assert "expected a private key on P-256, P-384 or P-521" in done.stderr
    done = kedge("sign", bundle, "--key", secret, code=2)
    assert "expected a private key" in done.stderr
    done = kedge("inspect", bundle, "--public-key", public, code=2)
    assert "got none" in done.stderr
    assert done.stderr.count("\n") == 1
