"""Blobs: uploading them, reading them as devices do, and freeing what no release needs."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final

import msgspec
from litestar import MediaType, Request, Response, Router, get, head, post, put
from litestar.datastructures import ResponseHeader
from litestar.params import FromPath, JSONBody
from litestar.response import Redirect, Stream

from fleet.ids import Digest
from fleet.wire import blob_access
from server.api.deps import ADMIN, PUBLIC, ServicesDep, scoped
from server.errors import NotFoundError, RequestError
from server.ports.blobs import BlobStore
from server.services.people.roles import Principal, Role
from server.services.people.scopes import Scope

AnyRequest = Request[Principal, Any, Any]
_PIECE: Final = 512 * 1024
#: A blob is of no model yet: the limits are kept to when it is released.
_PUBLISH = scoped(Role.RELEASER, Scope.RELEASES_PUBLISH, narrows=True)
_RANGE: Final = re.compile(r"bytes=(\d{1,15})-(\d{0,15})")


class RangeError(RequestError):
    """The blob has no such range."""

    status = 416
    title = "Range not satisfiable"


class BlobOut(msgspec.Struct, frozen=True, kw_only=True):
    """A stored blob."""

    digest: str
    size: int


class CollectIn(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What may go: blobs that nothing has named for so many seconds. `dry_run` only counts."""

    older_than: float = 7 * 24 * 3600.0
    dry_run: bool = False


class CollectOut(msgspec.Struct, frozen=True, kw_only=True):
    """What went, or would."""

    blobs: int
    bytes: int


@get(
    "/api/v1/blobs/{digest:str}",
    opt=PUBLIC,
    sync_to_thread=True,
    summary="Read a blob",
    tags=["releases"],
    security=[],
    media_type="application/octet-stream",
    response_headers=[
        ResponseHeader(name="accept-ranges", value="bytes", description="Ranges may be asked for.")
    ],
)
def read_blob(
    request: AnyRequest, services: ServicesDep, digest: FromPath[str]
) -> Stream | Redirect | Response[None]:
    """Return a blob, or a range of it, to an enrolled device, which shows a proof with its key.

    Where the blobs lie in an object store, the answer points there for some minutes.
    """
    services.blob_reading.check(request.headers.get(blob_access.HEADER, ""))
    wanted, blobs = Digest(digest), services.blobs
    if not blobs.has(wanted):
        raise NotFoundError(f"blob {wanted}: not stored")
    if address := blobs.address(wanted):
        # Of the route's own media type, a redirect cannot be made.
        return Redirect(address, status_code=307, media_type=MediaType.TEXT)
    size = blobs.size(wanted)
    begin, end = _range(request.headers.get("range", ""), size)
    headers = {"content-length": str(end - begin)}
    if "range" not in request.headers:
        return Stream(_pieces(blobs, wanted, begin, end), headers=headers)
    headers["content-range"] = f"bytes {begin}-{end - 1}/{size}"
    return Stream(_pieces(blobs, wanted, begin, end), headers=headers, status_code=206)


def _range(header: str, size: int) -> tuple[int, int]:
    """Return begin and end of a single range (RFC 9110, 14.1.2); of none, the whole.

    Raises:
        RangeError: it is of another form, or outside the blob.
    """
    if not header:
        return 0, size
    found = _RANGE.fullmatch(header.strip())
    if found is None:
        raise RangeError(f"range: expected bytes=<first>-<last>, got {header[:80]!r}")
    begin, last = int(found[1]), int(found[2] or size)
    if not begin < size or last < begin:
        raise RangeError(f"range: expected one within {size} bytes, got {header[:80]!r}")
    return begin, min(last + 1, size)


def _pieces(blobs: BlobStore, digest: Digest, begin: int, end: int) -> Iterator[bytes]:
    for start in range(begin, end, _PIECE):
        yield blobs.read_range(digest, start, min(_PIECE, end - start))


@head(
    "/api/v1/blobs/{digest:str}",
    opt=_PUBLISH,
    sync_to_thread=True,
    summary="Ask for a blob",
    tags=["releases"],
)
def has_blob(services: ServicesDep, digest: FromPath[str]) -> Response[None]:
    """Answer 200 when the blob is stored, 404 when it must be uploaded."""
    return Response(None, status_code=200 if services.releases.has_blob(Digest(digest)) else 404)


@put(
    "/api/v1/blobs/{digest:str}",
    opt=_PUBLISH,
    request_max_body_size=None,
    status_code=201,
    summary="Upload a blob",
    tags=["releases"],
)
async def put_blob(request: AnyRequest, services: ServicesDep, digest: FromPath[str]) -> BlobOut:
    """Store the body under its digest, which is checked while it streams in."""
    checked = Digest(digest)
    pieces = _arriving(request.stream(), asyncio.get_running_loop())
    return BlobOut(digest=digest, size=await asyncio.to_thread(services.releases.put_blob, checked, pieces))


def _arriving(stream: AsyncIterator[bytes], loop: asyncio.AbstractEventLoop) -> Iterator[bytes]:
    """Yield the body's pieces in another thread, each as it arrives: a slow disk slows the sender down."""

    async def following() -> bytes | None:
        return await anext(stream, None)

    while (piece := asyncio.run_coroutine_threadsafe(following(), loop).result()) is not None:
        yield piece


@post(
    "/api/v1/blobs/collect",
    opt=ADMIN,
    sync_to_thread=True,
    status_code=200,
    summary="Free what no release needs",
    tags=["releases"],
)
def collect(request: AnyRequest, services: ServicesDep, data: JSONBody[CollectIn]) -> CollectOut:
    """Delete blobs that no release names and that are older than a limit: uploads that came to nothing."""
    went = services.garbage.collect(request.user, data.older_than, dry_run=data.dry_run)
    return CollectOut(blobs=went.blobs, bytes=went.bytes)


ROUTES = Router(path="/", route_handlers=[read_blob, has_blob, put_blob, collect])
