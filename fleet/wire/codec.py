"""Messages to bytes and back, with a size limit before anything is parsed."""

from __future__ import annotations

from typing import Final, TypeVar

import msgspec

from fleet.errors import WireError
from fleet.ids import plain
from fleet.wire import messages

M = TypeVar("M", bound=messages.Message)

#: The largest message that anybody accepts, in bytes: a raw camera frame fits, a flood does not.
LIMIT: Final = 4 * 1024 * 1024

_ENCODER: Final = msgspec.msgpack.Encoder(enc_hook=plain)


def encode(message: messages.Message) -> bytes:
    """Return the message as MessagePack."""
    return _ENCODER.encode(message)


class Decoder:
    """Turns bytes into one of some message types."""

    def __init__(self, *types: type[messages.Message], limit: int = LIMIT) -> None:
        """Accept these message types, and no more than `limit` bytes."""
        union = types[0]
        for more in types[1:]:
            union = union | more  # type: ignore[assignment]  # a union made at run time; msgspec reads it
        self._decoder: Final = msgspec.msgpack.Decoder(union)
        self._limit: Final = limit

    def __call__(self, data: bytes) -> messages.Message:
        """Return the message in the bytes.

        Raises:
            WireError: too long, malformed, or of a type that is not expected here.
        """
        if len(data) > self._limit:
            raise WireError(f"message: expected at most {self._limit} bytes, got {len(data)}")
        try:
            return self._decoder.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise WireError(f"message: {error}") from error


#: What the server reads, by the last level of the topic.
UPLINK: Final = {
    "hello": Decoder(messages.Hello, limit=64 * 1024),
    "status": Decoder(messages.Status, limit=1024),
    "report": Decoder(messages.ModelReport, limit=64 * 1024),
    "event": Decoder(messages.UpdateEvent, messages.RefusalEvent, messages.Decommissioned, limit=64 * 1024),
    "request": Decoder(messages.HardRequest),
    "manifest": Decoder(messages.SignedStatement, limit=64 * 1024),
}
#: What a device reads, by the last level of the topic.
DOWNLINK: Final = {
    "command": Decoder(messages.Flush, limit=64 * 1024),
    "reply": Decoder(messages.Ack, messages.Answer),
}
