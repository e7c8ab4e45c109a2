"""A small client of the server's API, for the command line. It imports nothing of the server's libraries."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import httpx

from fleet.ids import Digest
from fleet.trust.metadata_set import TARGETS_LIMIT
from server.errors import ClientError

#: A JSON value, as the API gives it.
Json = Any
_PIECE: Final = 1024 * 1024
#: What the system puts before its words.
_ERRNO: Final = re.compile(r"^\[Errno -?\d+\] ")


class ApiClient:
    """Calls the API of one server. Use it as a context manager."""

    def __init__(self, server: str, token: str) -> None:
        """Prepare; nothing is sent yet.

        Raises:
            ClientError: the URL or the token is missing.
        """
        if not server:
            raise ClientError("which server? give --server URL, or set KEDGE_SERVER")
        if not token:
            raise ClientError("not logged in: give --token TOKEN, or set KEDGE_TOKEN")
        if not (token.isascii() and token.isprintable() and " " not in token):
            raise ClientError("token: expected letters, digits, '-' and '_'; got other characters")
        try:
            self._http: Final = httpx.Client(
                base_url=server.rstrip("/") + "/api/v1",
                headers={"Authorization": f"Bearer {token}"},
                timeout=httpx.Timeout(60.0, connect=10.0),
                trust_env=False,
            )
        except httpx.InvalidURL as error:
            raise ClientError(f"--server: expected a URL, got {server!r}: {error}") from error
        self._server: Final = server

    def __enter__(self) -> ApiClient:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connections."""
        self._http.close()

    def get(self, path: str, **query: object) -> Json:
        """Return what the server answers.

        Raises:
            ClientError: the server refused, or cannot be reached.
        """
        asked = {name: value for name, value in query.items() if value not in (None, "", [], ())}
        return self._call("GET", path, params=asked)

    def post(self, path: str, body: Mapping[str, object] | None = None) -> Json:
        """Send, and return what the server answers.

        Raises:
            ClientError: the server refused, or cannot be reached.
        """
        return self._call("POST", path, json=dict(body or {}))

    def put(self, path: str, body: Mapping[str, object]) -> Json:
        """Send, and return what the server answers.

        Raises:
            ClientError: the server refused, or cannot be reached.
        """
        return self._call("PUT", path, json=dict(body))

    def patch(self, path: str, body: Mapping[str, object]) -> Json:
        """Send what changes, and return what the server answers.

        Raises:
            ClientError: the server refused, or cannot be reached.
        """
        return self._call("PATCH", path, json=dict(body))

    def delete(self, path: str) -> None:
        """Remove.

        Raises:
            ClientError: the server refused, or cannot be reached.
        """
        self._call("DELETE", path)

    def lines(self, path: str) -> Iterator[bytes]:
        """Yield the lines of an answer as they come.

        Raises:
            ClientError: the server refused, or cannot be reached.
        """
        try:
            with self._http.stream("GET", path) as answer:
                if not answer.is_success:
                    answer.read()
                    self._checked(answer)
                for line in answer.iter_lines():
                    yield line.encode()
        except httpx.HTTPError as error:
            raise _unreached(self._server, error) from error

    def has_blob(self, digest: Digest) -> bool:
        """Return whether the server has the blob already.

        Raises:
            ClientError: the server cannot be reached, or does not let us ask.
        """
        answer = self._send("HEAD", f"/blobs/{digest}")
        if answer.status_code not in (200, 404):
            raise ClientError(f"{self._server}: {answer.status_code} for a blob: may this token publish?")
        return answer.status_code == 200  # noqa: PLR2004 - HTTP's OK

    def put_blob(self, digest: Digest, path: Path) -> None:
        """Upload a file.

        Raises:
            ClientError: the server refused, or cannot be reached.
        """
        size = str(path.stat().st_size)
        self._checked(
            self._send("PUT", f"/blobs/{digest}", content=_pieces(path), headers={"Content-Length": size})
        )

    def get_blob(self, digest: Digest, start: int) -> bytes:
        """Return a piece of a blob for an offline kit, from a byte on.

        Raises:
            ClientError: the server refused, or cannot be reached.
        """
        answer = self._send("GET", f"/kits/blobs/{digest}", params={"start": start})
        if not answer.is_success:
            self._checked(answer)
        return answer.content

    def post_bytes(self, path: str, data: bytes) -> Json:
        """Send bytes, and return what the server answers.

        Raises:
            ClientError: the server refused, or cannot be reached.
        """
        kind = {"content-type": "application/octet-stream"}
        return self._checked(self._send("POST", path, content=data, headers=kind))

    def _call(self, method: str, path: str, **more: Any) -> Json:  # noqa: ANN401 - httpx's keywords
        return self._checked(self._send(method, path, **more))

    def _send(self, method: str, path: str, **more: Any) -> httpx.Response:  # noqa: ANN401 - as above
        try:
            return self._http.request(method, path, **more)
        except httpx.HTTPError as error:
            raise _unreached(self._server, error) from error

    def _checked(self, answer: httpx.Response) -> Json:
        try:
            body = answer.json() if answer.content else None
        except ValueError as error:
            if answer.is_success:
                kind = answer.headers.get("content-type", "something else")
                raise ClientError(f"{self._server}: expected a Kedge server's JSON, got {kind}") from error
            body = None
        if answer.is_success:
            return body
        detail = body.get("detail") if isinstance(body, dict) else None
        if detail in (None, "Not Found") and answer.status_code == httpx.codes.NOT_FOUND:
            detail = (
                "no Kedge server's API: expected its address without a path, such as http://127.0.0.1:8470"
            )
        refusal = f"{self._server}: {detail or answer.reason_phrase} ({answer.status_code})"
        raise ClientError(refusal, answer.status_code)


@contextlib.contextmanager
def trust_files(server: str) -> Iterator[Callable[[str], bytes | None]]:
    """Give a function that reads published trust metadata, for which nobody has to log in.

    Raises:
        ClientError: the URL is missing, or none; and, when a file is read, the server cannot be reached.
    """
    if not server:
        raise ClientError("which server? give --server URL, or set KEDGE_SERVER")
    try:
        client = httpx.Client(
            base_url=f"{server.rstrip('/')}/api/v1/trust",
            timeout=httpx.Timeout(60.0, connect=10.0),
            trust_env=False,
        )
    except httpx.InvalidURL as error:
        raise ClientError(f"--server: expected a URL, got {server!r}: {error}") from error

    def read(name: str) -> bytes | None:
        data = bytearray()
        try:
            with client.stream("GET", f"/{name}", headers={"accept-encoding": "identity"}) as answer:
                if answer.status_code == httpx.codes.NOT_FOUND:
                    return None
                if not answer.is_success:
                    raise ClientError(f"{server}: {name}: {answer.reason_phrase} ({answer.status_code})")
                for piece in answer.iter_bytes():
                    data += piece
                    if len(data) > TARGETS_LIMIT:
                        raise ClientError(
                            f"{server}: {name}: expected at most {TARGETS_LIMIT} bytes, got more"
                        )
        except httpx.HTTPError as error:
            raise _unreached(server, error) from error
        return bytes(data)

    with client:
        yield read


def _unreached(server: str, error: httpx.HTTPError) -> ClientError:
    """Return what to tell somebody whose server did not answer: most often its address is not right."""
    if isinstance(error, httpx.UnsupportedProtocol):
        return ClientError(f"--server: expected a URL such as http://127.0.0.1:8470, got {server!r}")
    why = str(error) or type(error).__name__
    if "WRONG_VERSION_NUMBER" in why:
        return ClientError(f"{server}: expected TLS, got something else: is it http:// there?")
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return ClientError(
            f"{server}: cannot be reached: {_ERRNO.sub('', why)}; does `kedge serve` run there?"
        )
    return ClientError(f"{server}: {why}")


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            yield piece
