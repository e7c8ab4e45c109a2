"""An identity key in hardware: a TPM, a secure element or a smart card, over PKCS#11.

The private key is made in the token and never leaves it. Each signature opens a session of its own: there are
few, and a token that was pulled out and put back works again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import PyKCS11 as pkcs11  # noqa: N813 - as every other module is called
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from device_agent.errors import StateError
from fleet import token_uri
from fleet.errors import TokenUriError
from fleet.wire.enrolment import public_pem

#: Where the token's PIN is read from, unless the address names a file.
PIN_VARIABLE: Final = "KEDGE_PKCS11_PIN"
#: The curve P-256 as PKCS#11 names it: its object identifier, DER.
_P256: Final = bytes.fromhex("06082a8648ce3d030107")
#: PKCS#11 has whole programs log in, not sessions: of two threads, the second would be "logged in already".
_ONE_AT_A_TIME: Final = threading.Lock()
_USUAL_LABEL: Final = "kedge-device"
#: Bytes of an uncompressed point of P-256, and the head of the DER octet string that most tokens put it in.
_POINT: Final = 65
_WRAPPED: Final = b"\x04\x41"


class TokenKey:
    """An identity key in a token; implements `device_agent.ports.DeviceKey`."""

    def __init__(self, uri: str) -> None:
        """Use the key at this address; the token is not asked yet.

        Raises:
            StateError: the address is none, or names no library.
        """
        try:
            self._uri: Final = token_uri.parse(uri)
        except TokenUriError as error:
            raise StateError(f"key: {error}") from error
        if not self._uri.module:
            raise StateError(f"key: {uri}: which PKCS#11 library? add ?module-path=/usr/lib/....so")
        self._label: Final = self._uri.label or ("" if self._uri.key_id else _USUAL_LABEL)

    def ensure(self) -> None:
        """Have the token make a P-256 key, unless it has one of this label.

        Raises:
            StateError: the token cannot be used.
        """
        with self._session() as session:
            if self._find(session, pkcs11.CKO_PRIVATE_KEY) is None:
                session.generateKeyPair(
                    *self._templates(), mecha=pkcs11.Mechanism(pkcs11.CKM_EC_KEY_PAIR_GEN)
                )

    def public_pem(self) -> str:
        """Return the public half.

        Raises:
            StateError: the token cannot be used, or has no such key.
        """
        with self._session() as session:
            handle = self._needed(session, pkcs11.CKO_PUBLIC_KEY)
            point = bytes(session.getAttributeValue(handle, [pkcs11.CKA_EC_POINT])[0])
        if len(point) > _POINT:
            point = point.removeprefix(_WRAPPED)
        try:
            return public_pem(ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point))
        except ValueError as error:
            raise self._trouble("its key is no P-256 key") from error

    def sign(self, data: bytes) -> bytes:
        """Return a signature: ECDSA, SHA-256, DER.

        Raises:
            StateError: the token cannot be used, or has no such key.
        """
        with self._session() as session:
            handle = self._needed(session, pkcs11.CKO_PRIVATE_KEY)
            digest = hashlib.sha256(data).digest()
            raw = bytes(session.sign(handle, digest, pkcs11.Mechanism(pkcs11.CKM_ECDSA)))
        half = len(raw) // 2
        return encode_dss_signature(int.from_bytes(raw[:half], "big"), int.from_bytes(raw[half:], "big"))

    def destroy(self) -> None:
        """Have the token forget the key for good.

        Raises:
            StateError: the token cannot be used.
        """
        with self._session() as session:
            for kind in (pkcs11.CKO_PRIVATE_KEY, pkcs11.CKO_PUBLIC_KEY):
                handle = self._find(session, kind)
                if handle is not None:
                    session.destroyObject(handle)

    @contextlib.contextmanager
    def _session(self) -> Iterator[Any]:  # the library has no types
        with _ONE_AT_A_TIME, self._opened() as session:
            yield session

    @contextlib.contextmanager
    def _opened(self) -> Iterator[Any]:  # as above
        library = pkcs11.PyKCS11Lib()
        try:
            library.load(self._uri.module)
            slots = library.getSlotList(tokenPresent=True)
            slot = next((x for x in slots if self._is_it(library.getTokenInfo(x))), None)
            if slot is None:
                raise self._trouble("there is no such token")
            session = library.openSession(slot, pkcs11.CKF_SERIAL_SESSION | pkcs11.CKF_RW_SESSION)
            try:
                session.login(self._pin())
                yield session
            finally:
                session.closeSession()
        except pkcs11.PyKCS11Error as error:
            raise self._trouble(error) from error
        finally:
            library.unload()

    def _is_it(self, info: Any) -> bool:  # noqa: ANN401 - the library has no types
        return self._uri.names(
            token=info.label, serial=info.serialNumber, manufacturer=info.manufacturerID, model=info.model
        )

    def _pin(self) -> str:
        file = self._uri.pin_file
        try:
            pin = Path(file).read_text().strip() if file else os.environ.get(PIN_VARIABLE, "")
        except OSError as error:
            raise self._trouble(f"PIN: {file}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise self._trouble(f"PIN: {file}: expected text, got something else") from error
        if not pin:
            raise self._trouble(f"expected its PIN in {file or PIN_VARIABLE + ', or pin-source=file:/path'}")
        return pin

    def _templates(self) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
        yes, no = pkcs11.CK_TRUE, pkcs11.CK_FALSE
        both = [(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_EC), (pkcs11.CKA_TOKEN, yes), *self._named()]
        public = [
            *both,
            (pkcs11.CKA_CLASS, pkcs11.CKO_PUBLIC_KEY),
            (pkcs11.CKA_EC_PARAMS, _P256),
            (pkcs11.CKA_VERIFY, yes),
            (pkcs11.CKA_PRIVATE, no),
        ]
        private = [
            *both,
            (pkcs11.CKA_CLASS, pkcs11.CKO_PRIVATE_KEY),
            (pkcs11.CKA_SIGN, yes),
            (pkcs11.CKA_PRIVATE, yes),
            (pkcs11.CKA_SENSITIVE, yes),
            (pkcs11.CKA_EXTRACTABLE, no),
        ]
        return public, private

    def _named(self) -> list[tuple[Any, ...]]:
        pairs = ((pkcs11.CKA_LABEL, self._label), (pkcs11.CKA_ID, self._uri.key_id))
        return [(attribute, value) for attribute, value in pairs if value]

    def _find(self, session: Any, kind: int) -> Any | None:  # noqa: ANN401 - the library has no types
        found = session.findObjects([(pkcs11.CKA_CLASS, kind), *self._named()])
        return found[0] if found else None

    def _needed(self, session: Any, kind: int) -> Any:  # noqa: ANN401 - the library has no types
        found = self._find(session, kind)
        if found is None:
            raise self._trouble(f"it has no key {self._label or self._uri.key_id.hex()!r}")
        return found

    def _trouble(self, why: object) -> StateError:
        return StateError(f"token {self._uri.token or self._uri.serial}: {why}")
