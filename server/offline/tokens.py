"""A person's private key in hardware, by PKCS#11 (OASIS PKCS#11 3.1): it signs inside, and never comes out.

ECDSA on the curves P-256 and P-384, which every token has and every device verifies. The signer is one of
securesystemslib's kind; its own `HSMSigner` finds keys by a number alone (see ADR 0104).
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    SECP384R1,
    EllipticCurve,
    EllipticCurvePublicKey,
)
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from securesystemslib.signer import Key, SecretsHandler, Signature, Signer, SSlibKey

from fleet import token_uri
from fleet.errors import MissingExtraError, TokenUriError
from fleet.token_uri import TokenUri
from server.errors import OfflineKeyError
from server.offline.key_files import Ask

#: Environment variable with the path of the PKCS#11 library, for URIs without `module-path`.
MODULE_VARIABLE: Final = "KEDGE_PKCS11_MODULE"
#: DER of a curve's object identifier, as CKA_EC_PARAMS holds it.
_CURVES: Final[dict[bytes, EllipticCurve]] = {
    bytes.fromhex("06082a8648ce3d030107"): SECP256R1(),
    bytes.fromhex("06052b81040022"): SECP384R1(),
}
_P256: Final = next(iter(_CURVES))
#: DER's octet string, in which CKA_EC_POINT is wrapped; some tokens leave the wrapping out.
_OCTETS: Final = 0x04


class TokenSigner(Signer):
    """Signs with a key in a token. Each signature logs in and out, so a token may be pulled in between."""

    def __init__(self, uri: TokenUri, public_key: SSlibKey, ask: Ask) -> None:
        """Use `open_key`, which reads the public key from the token."""
        self._uri: Final = uri
        self._key: Final = public_key
        self._ask: Final = ask

    @classmethod
    def from_priv_key_uri(
        cls, priv_key_uri: str, public_key: Key, secrets_handler: SecretsHandler | None = None
    ) -> TokenSigner:
        """Return the signer of a URI, which must hold this public key's other half.

        Raises:
            OfflineKeyError: it does not.
        """
        signer = open_key(priv_key_uri, secrets_handler or (lambda _: ""))
        if signer.public_key.keyid != public_key.keyid:
            raise OfflineKeyError(f"{priv_key_uri}: holds another key")
        return signer

    @property
    def public_key(self) -> SSlibKey:
        """The public key, as the token says."""
        return self._key

    def sign(self, payload: bytes) -> Signature:
        """Return the signature of some bytes.

        Raises:
            OfflineKeyError: the token is gone, the PIN is wrong, or the token refuses.
        """
        algorithm = "sha384" if self._key.scheme.endswith("384") else "sha256"
        digest = hashlib.new(algorithm, payload).digest()
        with _session(self._uri, self._ask) as (pkcs11, session):
            handle = _find(pkcs11, session, self._uri, pkcs11.CKO_PRIVATE_KEY)
            raw = bytes(session.sign(handle, digest, pkcs11.Mechanism(pkcs11.CKM_ECDSA, None)))
        half = len(raw) // 2
        numbers = (int.from_bytes(raw[:half], "big"), int.from_bytes(raw[half:], "big"))
        return Signature(self._key.keyid, encode_dss_signature(*numbers).hex())


def read_uri(uri: str) -> TokenUri:
    """Return where a key is.

    Raises:
        OfflineKeyError: the URI is none, or names no key, or nobody says which library.
    """
    try:
        where = token_uri.parse(uri)
    except TokenUriError as error:
        raise OfflineKeyError(str(error)) from error
    if not where.label and not where.key_id:
        raise OfflineKeyError(f"{uri}: expected a token and a key (object=, id=)")
    module = where.module or os.environ.get(MODULE_VARIABLE, "")
    if not module:
        raise OfflineKeyError(
            f"{uri}: which PKCS#11 library? add ?module-path=/usr/lib/....so, or set {MODULE_VARIABLE}"
        )
    return dataclasses.replace(where, module=module)


def open_key(uri: str, ask: Ask) -> TokenSigner:
    """Return the signer of the key that a PKCS#11 URI names.

    Raises:
        OfflineKeyError: there is no such token or key, or the PIN is wrong.
        MissingExtraError: PKCS#11 is not installed.
    """
    where, known = read_uri(uri), _once(ask)
    with _session(where, known) as (pkcs11, session):
        handle = _find(pkcs11, session, where, pkcs11.CKO_PUBLIC_KEY)
        key = _public_key(pkcs11, session, handle, where)
    return TokenSigner(where, key, known)


def generate(uri: str, ask: Ask) -> TokenSigner:
    """Make a P-256 key inside a token, under the name (`object=`) that the URI gives.

    Raises:
        OfflineKeyError: there is no such token, it has such a key already, or the PIN is wrong.
        MissingExtraError: PKCS#11 is not installed.
    """
    where, known = read_uri(uri), _once(ask)
    if not where.label:
        raise OfflineKeyError(f"{uri}: expected object=NAME, under which the new key is found")
    with _session(where, known, write=True) as (pkcs11, session):
        if session.findObjects([(pkcs11.CKA_LABEL, where.label)]):
            raise OfflineKeyError(
                f"{uri}: the token has a {where.label!r} already, and a key is never written over"
            )
        same = [(pkcs11.CKA_LABEL, where.label), (pkcs11.CKA_ID, where.key_id or os.urandom(8))]
        same += [(pkcs11.CKA_TOKEN, pkcs11.CK_TRUE), (pkcs11.CKA_KEY_TYPE, pkcs11.CKK_EC)]
        public = [
            *same,
            (pkcs11.CKA_CLASS, pkcs11.CKO_PUBLIC_KEY),
            (pkcs11.CKA_EC_PARAMS, _P256),
            (pkcs11.CKA_VERIFY, pkcs11.CK_TRUE),
        ]
        private = [
            *same,
            (pkcs11.CKA_CLASS, pkcs11.CKO_PRIVATE_KEY),
            (pkcs11.CKA_PRIVATE, pkcs11.CK_TRUE),
            (pkcs11.CKA_SENSITIVE, pkcs11.CK_TRUE),
            (pkcs11.CKA_EXTRACTABLE, pkcs11.CK_FALSE),
            (pkcs11.CKA_SIGN, pkcs11.CK_TRUE),
        ]
        mechanism = pkcs11.Mechanism(pkcs11.CKM_EC_KEY_PAIR_GEN, None)
        handle, _ = session.generateKeyPair(public, private, mechanism)
        key = _public_key(pkcs11, session, handle, where)
    return TokenSigner(where, key, known)


def _once(ask: Ask) -> Ask:
    """Return the same, asking a person only once for the same PIN."""
    answers: dict[str, str] = {}

    def known(what: str) -> str:
        if what not in answers:
            answers[what] = ask(what)
        return answers[what]

    return known


# PyKCS11 carries no annotations: what comes from it is Any.


@contextlib.contextmanager
def _session(uri: TokenUri, ask: Ask, *, write: bool = False) -> Iterator[tuple[Any, Any]]:
    try:
        import PyKCS11 as pkcs11  # noqa: N813 - the name under which the standard is known
    except ModuleNotFoundError as error:
        raise MissingExtraError("a key in hardware", "pkcs11") from error
    if not Path(uri.module).is_file():
        raise OfflineKeyError(f"{uri.text}: there is no PKCS#11 library {uri.module}")
    library = pkcs11.PyKCS11Lib()
    try:
        library.load(uri.module)
        flags = pkcs11.CKF_SERIAL_SESSION | (pkcs11.CKF_RW_SESSION if write else 0)
        session = library.openSession(_slot(pkcs11, library, uri), flags)
        try:
            session.login(_pin(uri, ask))
            yield pkcs11, session
        finally:
            session.closeSession()
    except pkcs11.PyKCS11Error as error:
        raise OfflineKeyError(f"{uri.text}: {_words(pkcs11, error, uri)}") from error
    finally:
        library.unload()


def _words(pkcs11: Any, error: Any, uri: TokenUri) -> str:  # noqa: ANN401 - as above
    words = {
        pkcs11.CKR_PIN_INCORRECT: "wrong PIN",
        pkcs11.CKR_PIN_LEN_RANGE: "wrong PIN",
        pkcs11.CKR_PIN_LOCKED: "the PIN is locked after too many wrong ones",
        -1: f"{uri.module} is no PKCS#11 library",
    }
    return words.get(error.value, f"the token says {error}")


def _slot(pkcs11: Any, library: Any, uri: TokenUri) -> int:  # noqa: ANN401 - as above
    found, names = [], []
    for slot in library.getSlotList(tokenPresent=True):
        info = library.getTokenInfo(slot)
        if not info.flags & pkcs11.CKF_TOKEN_INITIALIZED:
            continue
        names.append(f"{info.label.strip()} (serial {info.serialNumber.strip()})")
        if uri.names(
            token=info.label, serial=info.serialNumber, manufacturer=info.manufacturerID, model=info.model
        ):
            found.append(int(slot))
    if len(found) != 1:
        there = ", ".join(names) or "none"
        raise OfflineKeyError(f"{uri.text}: expected one such token, got {len(found)}; there are: {there}")
    return found[0]


def _pin(uri: TokenUri, ask: Ask) -> str:
    file = uri.pin_file
    try:
        pin = Path(file).read_text().strip() if file else ask(f"PIN of {uri.token or uri.serial}")
    except OSError as error:
        raise OfflineKeyError(f"{file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise OfflineKeyError(f"{file}: expected a PIN in text, got something else") from error
    if not pin:
        raise OfflineKeyError(f"{uri.text}: no PIN was given")
    return pin


def _find(pkcs11: Any, session: Any, uri: TokenUri, kind: int) -> Any:  # noqa: ANN401 - as above
    template: list[tuple[int, Any]] = [(pkcs11.CKA_CLASS, kind), (pkcs11.CKA_KEY_TYPE, pkcs11.CKK_EC)]
    if uri.label:
        template.append((pkcs11.CKA_LABEL, uri.label))
    if uri.key_id:
        template.append((pkcs11.CKA_ID, uri.key_id))
    found = session.findObjects(template)
    if len(found) != 1:
        raise OfflineKeyError(f"{uri.text}: expected one such ECDSA key in the token, got {len(found)}")
    return found[0]


def _public_key(pkcs11: Any, session: Any, handle: Any, uri: TokenUri) -> SSlibKey:  # noqa: ANN401 - as above
    values = session.getAttributeValue(handle, [pkcs11.CKA_EC_PARAMS, pkcs11.CKA_EC_POINT])
    parameters, point = (bytes(value) for value in values)
    if parameters not in _CURVES:
        raise OfflineKeyError(f"{uri.text}: expected a key on P-256 or P-384, got curve {parameters.hex()}")
    curve = _CURVES[parameters]
    plain = 1 + 2 * ((curve.key_size + 7) // 8)
    if len(point) > plain and point[0] == _OCTETS:
        point = point[-plain:]
    try:
        return SSlibKey.from_crypto(EllipticCurvePublicKey.from_encoded_point(curve, point))
    except ValueError as error:
        raise OfflineKeyError(f"{uri.text}: the token's public key is none: {error}") from error
