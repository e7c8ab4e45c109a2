"""Where a key lies in hardware: a PKCS#11 URI (RFC 7512)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import unquote, unquote_to_bytes

from server.errors import OfflineKeyError

#: What a URI of a key in hardware begins with.
SCHEME: Final = "pkcs11:"
#: Environment variable with the path of the PKCS#11 library, for URIs without `module-path`.
MODULE_VARIABLE: Final = "KEDGE_PKCS11_MODULE"
_PATH: Final = frozenset({"token", "serial", "manufacturer", "model", "object", "id", "type"})
_QUERY: Final = frozenset({"module-path", "pin-source"})


@dataclass(frozen=True, kw_only=True)
class TokenUri:
    """A key in a token.

    Attributes:
        text: the URI as it was given; it holds no secret.
        token, serial: which token; "" for any.
        label, key_id: which key; "" and b"" for any.
        module: path of the PKCS#11 library.
        pin_file: file that holds the PIN, None to ask for it.
    """

    text: str
    token: str
    serial: str
    label: str
    key_id: bytes
    module: Path
    pin_file: Path | None


def parse(text: str) -> TokenUri:
    """Read a PKCS#11 URI.

    Raises:
        OfflineKeyError: it is none, it names no token or key, or it holds the PIN itself.
    """
    if not text.startswith(SCHEME):
        raise OfflineKeyError(f"expected {SCHEME}token=...;object=..., got {text!r}")
    path, _, query = text.removeprefix(SCHEME).partition("?")
    where, how = _attributes(path, ";", _PATH), _attributes(query, "&", _QUERY)
    if not where.keys() & {"token", "serial"} or not where.keys() & {"object", "id"}:
        raise OfflineKeyError(f"{text}: expected a token (token=, serial=) and a key (object=, id=)")
    module = unquote(how.get("module-path", "")) or os.environ.get(MODULE_VARIABLE, "")
    if not module:
        raise OfflineKeyError(
            f"{text}: which PKCS#11 library? add ?module-path=/usr/lib/....so, or set {MODULE_VARIABLE}"
        )
    return TokenUri(
        text=text,
        token=unquote(where.get("token", "")),
        serial=unquote(where.get("serial", "")),
        label=unquote(where.get("object", "")),
        key_id=unquote_to_bytes(where.get("id", "")),
        module=Path(module),
        pin_file=_pin_file(text, unquote(how.get("pin-source", ""))),
    )


def _attributes(text: str, separator: str, known: frozenset[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in filter(None, text.split(separator)):
        name, equals, value = part.partition("=")
        if name == "pin-value":
            raise OfflineKeyError("pin-value: a PIN in a URI is read by others; use pin-source=file:/path")
        if name not in known or not equals or name in found:
            raise OfflineKeyError(f"{SCHEME} expected {', '.join(sorted(known))}, each once, got {part!r}")
        found[name] = value
    return found


def _pin_file(text: str, source: str) -> Path | None:
    if not source:
        return None
    path = Path(source.removeprefix("file:").replace("//", "/", 1))
    if not path.is_absolute():
        raise OfflineKeyError(f"{text}: pin-source: expected file:/path, got {source!r}")
    return path
