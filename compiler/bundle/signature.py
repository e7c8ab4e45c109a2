"""OpenSSF model signatures: `model.sig` beside a bundle's files, over all of them.

A Sigstore bundle with a DSSE envelope around an in-toto statement, predicate
https://model_signing/signature/v1.0 (OpenSSF Model Signing 1.0), which `model_signing verify key` and other
tools check. Devices do not need it: what they may install is signed by the fleet's own keys.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Final

from compiler.bundle import layout
from compiler.errors import SignatureError, one_line
from fleet.errors import MissingExtraError

#: What is no part of the bundle, and so is not signed.
_BESIDE: Final = (layout.MEASUREMENTS, layout.SIGNATURE)


def sign(folder: Path, key: Path, password: bytes | None = None) -> Path:
    """Sign every file of a bundle and return where the signature is.

    Args:
        folder: the bundle's; timings beside the bundle are left out.
        key: a PEM file with a private key on P-256, P-384 or P-521.
        password: of the key's file.

    Raises:
        BundleError: the folder is no whole bundle.
        SignatureError: the key is none, or cannot be read.
    """
    signing, hashing, _ = _library()
    layout.verify(folder, layout.read(folder))
    signature = folder / layout.SIGNATURE
    try:
        config = signing.Config().set_hashing_config(hashing.Config().set_ignored_paths(paths=_BESIDE))
        # It says str and hands it on to cryptography, which takes bytes.
        config.use_elliptic_key_signer(private_key=key, password=password)
        config.sign(folder, signature)
    except (OSError, ValueError, TypeError, AttributeError) as error:  # the last for keys without a curve
        raise SignatureError(f"{key}: expected a private key on P-256, P-384 or P-521: {error}") from error
    return signature


def verify(folder: Path, public_key: Path) -> None:
    """Check a bundle's signature, and every file against it.

    Raises:
        SignatureError: there is none, it is another key's, or a file is not what was signed.
    """
    _, hashing, verifying = _library()
    signature = folder / layout.SIGNATURE
    if not signature.is_file():
        raise SignatureError(
            f"{folder}: expected a signature in {layout.SIGNATURE}; got none (kedge sign makes one)"
        )
    try:
        config = verifying.Config().use_elliptic_key_verifier(public_key=public_key)
        config.set_hashing_config(hashing.Config().set_ignored_paths(paths=_BESIDE))
        config.verify(folder, signature)
    except Exception as error:  # the library raises anything on a malformed file, such as KeyError
        text = one_line(error) or type(error).__name__
        raise SignatureError(f"{folder}: the signature does not verify with {public_key}: {text}") from error


def _library() -> tuple[ModuleType, ModuleType, ModuleType]:
    try:
        from model_signing import hashing, signing, verifying
    except ModuleNotFoundError as error:
        raise MissingExtraError("kedge sign", "signing") from error
    return signing, hashing, verifying
