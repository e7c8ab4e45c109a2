"""The live page, and the event streams behind it and behind every page that follows what happens.

A watcher costs no thread: the streams look at their queue a few times a second. What happens in between goes
out together, so that a rollout to ten thousand devices is not ten thousand messages to each open page.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Final

from litestar import get
from litestar.response import ServerSentEvent, ServerSentEventMessage, Template

from server.console.pages import VIEWER, AnyRequest, ServicesDep, page
from server.console.views import live
from server.services.container import Services
from server.services.live import Happening, Subscription

POLL_SECONDS: Final = 0.2
#: A comment this often keeps proxies from closing a quiet stream.
QUIET_SECONDS: Final = 15.0
#: So many lines go out at once at the most; of a flood the newest are shown.
MOST_LINES: Final = 40


@get("/live", opt=VIEWER, sync_to_thread=True)
def live_page(request: AnyRequest, services: ServicesDep) -> Template:
    """What is happening?"""
    topic = _topic(request)
    with services.database.read() as session:
        lines = live.recent(session, topic)
    return page(request, services, "live.html", "live", lines=lines, topic=topic, topics=live.TOPICS)


@get("/live/stream", opt=VIEWER)
async def wire(services: ServicesDep) -> ServerSentEvent:
    """Tell a page which topics something happened in: it asks for its changed part itself."""
    return ServerSentEvent(_topics(services))


@get("/live/lines", opt=VIEWER)
async def lines(request: AnyRequest, services: ServicesDep) -> ServerSentEvent:
    """Send the live page its new lines as HTML, newest first."""
    return ServerSentEvent(_lines(request, services, _topic(request)))


def _topic(request: AnyRequest) -> str:
    asked = request.query_params.get("topic", "")
    return asked if asked in live.TOPICS else ""


async def _topics(services: Services) -> AsyncIterator[ServerSentEventMessage]:
    with services.live.subscribe() as watcher:
        async for batch in _batches(watcher):
            if not batch:
                yield ServerSentEventMessage(comment="quiet", data=None)
            for topic in sorted({happening.topic for happening in batch}):
                told = [happening.payload for happening in batch if happening.topic == topic]
                yield ServerSentEventMessage(event=f"fleet:{topic}", data=json.dumps(told[-MOST_LINES:]))


async def _lines(
    request: AnyRequest, services: Services, topic: str
) -> AsyncIterator[ServerSentEventMessage]:
    template = request.app.template_engine.get_template("lines.html")  # type: ignore[union-attr]  # the console sets it
    with services.live.subscribe(*([topic] if topic else [])) as watcher:
        async for batch in _batches(watcher):
            now = services.clock.now()
            shown = [line for happening in batch[-MOST_LINES:] if (line := live.of(happening, now))]
            if shown:
                html = template.render(lines=list(reversed(shown)), now=now, fresh=True)
                yield ServerSentEventMessage(data=html)
            else:
                yield ServerSentEventMessage(comment="quiet", data=None)


async def _batches(watcher: Subscription) -> AsyncIterator[list[Happening]]:
    """Give what happened since the last batch; an empty batch when it was quiet for long."""
    # The first, empty one sends the headers: the page knows at once that it is connected.
    yield []
    quiet = 0.0
    while True:
        batch = list(_waiting(watcher))
        quiet = 0.0 if batch else quiet + POLL_SECONDS
        if batch or quiet >= QUIET_SECONDS:
            quiet = 0.0
            yield batch
        await asyncio.sleep(POLL_SECONDS)


def _waiting(watcher: Subscription) -> Iterator[Happening]:
    while (happening := watcher.next(0)) is not None:
        yield happening


HANDLERS = (live_page, wire, lines)
