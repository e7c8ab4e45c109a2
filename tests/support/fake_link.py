"""A broker in memory: retained messages, exact and `+` filters, and the faults that tests need."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from device_agent.ports import OnMessage
from fleet.ids import DeviceId
from fleet.wire import topics
from server.errors import BrokerError
from server.ports.messaging import Incoming


def matches(topic_filter: str, topic: str) -> bool:
    """Return whether a filter without `#` matches the topic."""
    wanted, got = topic_filter.split("/"), topic.split("/")
    return len(wanted) == len(got) and all(w in ("+", g) for w, g in zip(wanted, got, strict=True))


class FakeBroker:
    """Delivers at once, on the caller's thread.

    Attributes:
        retained: topic to payload.
        published: every (topic, payload) that came in, in order.
        spoil: changes what a device receives; None from it loses the message.
        up: whether anybody is connected.
    """

    def __init__(self) -> None:
        self.retained: dict[str, bytes] = {}
        self.published: list[tuple[str, bytes]] = []
        self.spoil: Callable[[str, bytes], bytes | None] = lambda _topic, payload: payload
        self.up = True
        self._links: list[FakeLink] = []
        self._connections: list[FakeConnection] = []

    def link(self, device: str = "") -> FakeLink:
        """Connect a device; with an id it may do only what the wire's rules say."""
        link = FakeLink(self, DeviceId(device) if device else None)
        self._links.append(link)
        return link

    def connection(self) -> FakeConnection:
        """Connect a server."""
        connection = FakeConnection(self)
        self._connections.append(connection)
        return connection

    def take(self, topic: str, payload: bytes, *, retain: bool) -> None:
        """Take a message in, and pass it on to whoever is subscribed."""
        self.published.append((topic, payload))
        if retain and payload:
            self.retained[topic] = payload
        elif retain:
            self.retained.pop(topic, None)
        for link in self._links:
            link.deliver(topic, payload)
        for connection in self._connections:
            connection.deliver(topic, payload)

    def restart(self, *, keep: Callable[[str], bool] = lambda _topic: False) -> None:
        """Lose what is retained but for the topics that `keep` names; clients are connected again."""
        self.retained = {topic: data for topic, data in self.retained.items() if keep(topic)}
        self.up = True
        for link in self._links:
            link.resubscribe()
        for connection in self._connections:
            connection.reconnected()


class FakeLink:
    """Implements `device_agent.ports.Link`.

    Attributes:
        most_subscribed: the most topics that were ever subscribed at a time.
    """

    def __init__(self, broker: FakeBroker, device: DeviceId | None) -> None:
        self._broker = broker
        self._device = device
        self._waiting: list[tuple[str, bytes, bool]] = []
        self.subscriptions: dict[str, OnMessage] = {}
        self.most_subscribed = 0

    def publish(self, topic: str, payload: bytes, qos: int = 1, retain: bool = False) -> None:
        """Publish, or queue while the broker is down."""
        assert qos in (0, 1)
        if self._device is not None and not topics.may_publish(self._device, topic):
            return
        if self._broker.up:
            self._broker.take(topic, payload, retain=retain)
        else:
            self._waiting.append((topic, payload, retain))

    def subscribe(self, topics_: Sequence[str], on_message: OnMessage) -> None:
        """Subscribe, and deliver what is retained."""
        for topic in topics_:
            self.subscriptions[topic] = on_message
        self.most_subscribed = max(self.most_subscribed, len(self.subscriptions))
        for topic in topics_:
            self._deliver_retained(topic)

    def unsubscribe(self, topics_: Sequence[str]) -> None:
        """Unsubscribe."""
        for topic in topics_:
            self.subscriptions.pop(topic, None)

    def deliver(self, topic: str, payload: bytes) -> None:
        """Hand a message over when it is subscribed to and allowed."""
        receive = self.subscriptions.get(topic)
        if receive is None or (self._device is not None and not topics.may_subscribe(self._device, topic)):
            return
        spoilt = self._broker.spoil(topic, payload)
        if spoilt is not None:
            receive(topic, spoilt)

    def resubscribe(self) -> None:
        """Do what a link does after a reconnect."""
        waiting, self._waiting = self._waiting, []
        for topic, payload, retain in waiting:
            self.publish(topic, payload, retain=retain)
        for topic in list(self.subscriptions):
            self._deliver_retained(topic)

    def _deliver_retained(self, topic: str) -> None:
        if self._broker.up and topic in self._broker.retained:
            self.deliver(topic, self._broker.retained[topic])


class FakeConnection:
    """Implements `server.ports.messaging.Connection`."""

    def __init__(self, broker: FakeBroker) -> None:
        self._broker = broker
        self._receivers: dict[str, Callable[[Incoming], None]] = {}
        self._calls: list[Callable[[], None]] = []

    @property
    def connected(self) -> bool:
        """Whether the broker is up."""
        return self._broker.up

    def publish(self, topic: str, payload: bytes, retain: bool = True, qos: int = 1) -> None:
        """Publish, or fail while the broker is down."""
        assert qos in (0, 1)
        if not self._broker.up:
            raise BrokerError("not connected")
        self._broker.take(topic, payload, retain=retain)

    def subscribe(self, topic_filter: str, receive: Callable[[Incoming], None]) -> None:
        """Subscribe, and deliver what is retained."""
        self._receivers[topic_filter] = receive
        self._deliver_retained(topic_filter)

    def unsubscribe(self, topic_filter: str) -> None:
        """Unsubscribe."""
        self._receivers.pop(topic_filter, None)

    def on_connected(self, call: Callable[[], None]) -> None:
        """Remember what to call."""
        self._calls.append(call)

    def start(self) -> None:
        """Connect."""
        self.reconnected()

    def stop(self) -> None:
        """Forget everything."""
        self._receivers.clear()

    def deliver(self, topic: str, payload: bytes) -> None:
        """Hand a message to every matching subscription."""
        for topic_filter, receive in list(self._receivers.items()):
            if matches(topic_filter, topic):
                receive(Incoming(topic, payload))

    def reconnected(self) -> None:
        """Do what a connection does after a reconnect."""
        for topic_filter in list(self._receivers):
            self._deliver_retained(topic_filter)
        for call in self._calls:
            call()

    def _deliver_retained(self, topic_filter: str) -> None:
        if self._broker.up:
            for topic, payload in list(self._broker.retained.items()):
                if matches(topic_filter, topic):
                    self.deliver(topic, payload)
