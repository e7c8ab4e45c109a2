"""Where a key lies in hardware: a PKCS#11 URI (RFC 7512), read and matched in one way by everybody."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from fleet.errors import TokenUriError

#: What a URI of a key in hardware begins with.
SCHEME: Final = "pkcs11:"
#: Attributes that choose a token and an object in it, and those that say how to get there (section 2.3).
_PATH: Final = frozenset({"token", "serial", "manufacturer", "model", "object", "id", "type"})
_QUERY: Final = frozenset({"module-path", "pin-source"})
_KINDS: Final = frozenset({"", "private", "public"})
_ESCAPE: Final = re.compile(rb"%([0-9a-fA-F]{2})?")
_FILE: Final = re.compile(r"(?:file:(?://(?:localhost)?(?=/))?)?(/(?!/).+)", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class TokenUri:
    """A key in a token.

    Attributes:
        text: the URI as it was given; it holds no secret.
        token, serial, manufacturer, model: which token; "" for any.
        label, key_id: which key; "" and b"" for any.
        module: path of the PKCS#11 library, "" where the URI names none.
        pin_file: path of the file that holds the PIN, "" where the URI names none.
    """

    text: str
    token: str
    serial: str
    manufacturer: str
    model: str
    label: str
    key_id: bytes
    module: str
    pin_file: str

    def names(self, *, token: str, serial: str, manufacturer: str, model: str) -> bool:
        """Return whether this is the token of that description, as its library gives it, padding included."""
        wanted = (self.token, self.serial, self.manufacturer, self.model)
        found = (token, serial, manufacturer, model)
        return all(x in ("", y.rstrip(" \0")) for x, y in zip(wanted, found, strict=True))


def parse(text: str) -> TokenUri:
    """Read a PKCS#11 URI.

    Attributes that Kedge cannot obey are refused, not passed over: a mistyped one would lead to another key.

    Raises:
        TokenUriError: it is none, it names no token, or it holds the PIN itself.
    """
    if not text.startswith(SCHEME):
        raise TokenUriError(f"expected {SCHEME}token=...;object=..., got {text[:200]!r}")
    path, _, query = text.removeprefix(SCHEME).partition("?")
    where, how = _attributes(path, ";", _PATH), _attributes(query, "&", _QUERY)
    if not where.keys() & {"token", "serial"}:
        raise TokenUriError(f"{text[:200]}: expected a token (token=, serial=)")
    read = {name: _text(name, value) for name, value in (where | how).items() if name != "id"}.get
    if read("type", "") not in _KINDS:
        raise TokenUriError(f"{text[:200]}: type: expected private or public, got {read('type')!r}")
    return TokenUri(
        text=text,
        token=read("token", ""),
        serial=read("serial", ""),
        manufacturer=read("manufacturer", ""),
        model=read("model", ""),
        label=read("object", ""),
        key_id=where.get("id", b""),
        module=read("module-path", ""),
        pin_file=_pin_file(read("pin-source", "")),
    )


def _attributes(text: str, separator: str, known: frozenset[str]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for part in filter(None, text.split(separator)):
        name, equals, value = part.partition("=")
        if name == "pin-value":
            raise TokenUriError("pin-value: a PIN in a URI is read by others; use pin-source=file:/path")
        if name not in known or not equals or name in found:
            raise TokenUriError(f"{SCHEME} expected {', '.join(sorted(known))}, each once, got {part!r}")
        found[name] = _ESCAPE.sub(_unescape, value.encode(errors="surrogatepass"))
    return found


def _unescape(found: re.Match[bytes]) -> bytes:
    if found[1] is None:
        raise TokenUriError(f"expected two hexadecimal digits after each %, got {found.string!r}")
    return bytes([int(found[1], 16)])


def _text(name: str, value: bytes) -> str:
    try:
        text = value.decode()
    except UnicodeDecodeError as error:
        raise TokenUriError(f"{name}: expected UTF-8, got {value!r}") from error
    if "\0" in text:
        raise TokenUriError(f"{name}: expected text without a zero byte, got {text!r}")
    return text


def _pin_file(source: str) -> str:
    if not source:
        return ""
    found = _FILE.fullmatch(source)
    if found is None:
        raise TokenUriError(f"pin-source: expected file:/path, got {source!r}")
    return found[1]
