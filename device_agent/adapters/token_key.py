"""An identity key in hardware: a TPM, a secure element or a smart card, over PKCS#11.

The private key is made in the token and never leaves it. Each signature opens a session of its own: there are
few, and a token that was pulled out and put back works again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, unquote

import PyKCS11 as pkcs11  # noqa: N813 - as every other module is called
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from device_agent.errors import StateError
from fleet.wire.enrolment import public_pem

#: Where the token's PIN is read from, unless the address names a file.
PIN_VARIABLE: Final = "KEDGE_PKCS11_PIN"
#: The curve P-256 as PKCS#11 names it: its object identifier, DER.
_P256: Final = bytes.fromhex("06082a8648ce3d030107")
_USUAL_LABEL: Final = "kedge-device"
#: An uncompressed point of P-256, inside a DER octet string.
_POINT_HEAD: Final = b"\x04\x41\x04"


class TokenAddress:
    """A `pkcs11:` URI (RFC 7512): `pkcs11:token=NAME;object=LABEL?module-path=FILE&pin-source=FILE`."""

    def __init__(self, uri: str) -> None:
        """Read it.

        Raises:
            StateError: it is no such URI, or names no token or module.
        """
        scheme, _, rest = uri.partition(":")
        path, _, query = rest.partition("?")
        parts = dict(part.partition("=")[::2] for part in path.split(";"))
        asked = parse_qs(query)
        self.token: Final = unquote(parts.get("token", ""))
        self.label: Final = unquote(parts.get("object", "")) or _USUAL_LABEL
        self.module: Final = asked.get("module-path", [""])[0]
        self.pin_file: Final = asked.get("pin-source", [""])[0].removeprefix("file:")
        if scheme != "pkcs11" or not self.token or not self.module:
            raise StateError(
                "key: expected pkcs11:token=NAME;object=LABEL?module-path=FILE&pin-source=FILE, got "
                f"{uri[:200]!r}"
            )

    def pin(self) -> str:
        """Return the PIN.

        Raises:
            StateError: there is none.
        """
        if not self.pin_file:
            pin = os.environ.get(PIN_VARIABLE, "")
            if not pin:
                raise StateError(
                    f"token {self.token}: expected its PIN in {PIN_VARIABLE}, or pin-source=FILE"
                )
            return pin
        try:
            return Path(self.pin_file).read_text().strip()
        except OSError as error:
            raise StateError(f"token {self.token}: PIN: {self.pin_file}: {error.strerror}") from error


class TokenKey:
    """An identity key in a token; implements `device_agent.ports.DeviceKey`."""

    def __init__(self, uri: str) -> None:
        """Use the key at this address; the token is not asked yet.

        Raises:
            StateError: the address is none.
        """
        self._address: Final = TokenAddress(uri)

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
        if not point.startswith(_POINT_HEAD):
            raise self._trouble("its key is no P-256 key")
        return public_pem(ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point[2:]))

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
        library = pkcs11.PyKCS11Lib()
        try:
            library.load(self._address.module)
            slots = library.getSlotList(tokenPresent=True)
            slot = next((x for x in slots if _label(library, x) == self._address.token), None)
            if slot is None:
                raise self._trouble("there is no such token")
            session = library.openSession(slot, pkcs11.CKF_SERIAL_SESSION | pkcs11.CKF_RW_SESSION)
            try:
                session.login(self._address.pin())
                yield session
            finally:
                session.closeSession()
        except pkcs11.PyKCS11Error as error:
            raise self._trouble(error) from error

    def _templates(self) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
        yes, no = pkcs11.CK_TRUE, pkcs11.CK_FALSE
        both = [
            (pkcs11.CKA_KEY_TYPE, pkcs11.CKK_EC),
            (pkcs11.CKA_TOKEN, yes),
            (pkcs11.CKA_LABEL, self._address.label),
        ]
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

    def _find(self, session: Any, kind: int) -> Any | None:  # noqa: ANN401 - the library has no types
        wanted = [(pkcs11.CKA_CLASS, kind), (pkcs11.CKA_LABEL, self._address.label)]
        found = session.findObjects(wanted)
        return found[0] if found else None

    def _needed(self, session: Any, kind: int) -> Any:  # noqa: ANN401 - the library has no types
        found = self._find(session, kind)
        if found is None:
            raise self._trouble(f"it has no key {self._address.label!r}")
        return found

    def _trouble(self, why: object) -> StateError:
        return StateError(f"token {self._address.token}: {why}")


def _label(library: Any, slot: int) -> str:  # noqa: ANN401 - the library has no types
    return str(library.getTokenInfo(slot).label).rstrip(" \0")
