"""The wire format is frozen: devices in the field read and write these bytes for years."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.errors import WireError
from fleet.wire import codec, messages, statement

VECTORS: list[tuple[str, messages.Message, str]] = [
    (
        "hello",
        messages.Hello(
            boot_id="b1",
            agent_version="0.1.0",
            target="laptop-x86",
            time=1.5,
            monotonic=2.5,
            firmware={"onnxruntime": "1.31.1"},
            slots=(
                messages.ModelSlot(
                    model="digits",
                    active="sha256:aa",
                    active_version="1",
                    previous="",
                    release_counter=3,
                    state=messages.UpdateState.COMMITTED,
                    rollout="r1",
                ),
            ),
            assignment_version=4,
            outbox_bytes=10,
        ),
        (
            "8ca474797065a568656c6c6fa7626f6f745f6964a26231ad6167656e745f76657273696f6ea5302e312e30a6746172676574"
            "aa6c6170746f702d783836a474696d65cb3ff8000000000000a96d6f6e6f746f6e6963cb4004000000000000a86669726d77"
            "61726581ab6f6e6e7872756e74696d65a6312e33312e31a5736c6f74739187a56d6f64656ca6646967697473a66163746976"
            "65a97368613235363a6161ae6163746976655f76657273696f6ea131a870726576696f7573a0af72656c656173655f636f75"
            "6e74657203a57374617465a9636f6d6d6974746564a7726f6c6c6f7574a27231b261737369676e6d656e745f76657273696f"
            "6e04af636c6f636b5f756e74727573746564c2ac6f7574626f785f62797465730aa5676174657390"
        ),
    ),
    (
        "status",
        messages.Status(online=False, boot_id="b1", time=1.0),
        "84a474797065a6737461747573a66f6e6c696e65c2a7626f6f745f6964a26231a474696d65cb3ff0000000000000",
    ),
    (
        "event",
        messages.UpdateEvent(
            id="e1",
            rollout="r1",
            model="digits",
            bundle="sha256:aa",
            state=messages.UpdateState.ROLLED_BACK,
            time=1.0,
            boot_id="b1",
            monotonic=2.0,
            reason="golden_mismatch",
            measured={"max_abs_error": 0.5},
        ),
        (
            "8ca474797065a6757064617465a26964a26531a7726f6c6c6f7574a27231a56d6f64656ca6646967697473a662756e646c65"
            "a97368613235363a6161a57374617465ab726f6c6c65645f6261636ba474696d65cb3ff0000000000000a7626f6f745f6964"
            "a26231a96d6f6e6f746f6e6963cb4000000000000000a6726561736f6eaf676f6c64656e5f6d69736d61746368a664657461"
            "696ca0a86d6561737572656481ad6d61785f6162735f6572726f72cb3fe0000000000000"
        ),
    ),
    (
        "event",
        messages.RefusalEvent(
            id="e2",
            what="chunk",
            reason="bad_digest",
            detail="d",
            time=1.0,
            boot_id="b1",
            monotonic=2.0,
        ),
        (
            "88a474797065a77265667573616ca26964a26532a477686174a56368756e6ba6726561736f6eaa6261645f646967657374a6"
            "64657461696ca164a474696d65cb3ff0000000000000a7626f6f745f6964a26231a96d6f6e6f746f6e6963cb400000000000"
            "0000"
        ),
    ),
    (
        "event",
        messages.Decommissioned(id="e5", assignment_version=7, time=1_800_000_000.0, boot_id="b1"),
        (
            "85a474797065ae6465636f6d6d697373696f6e6564a26964a26535b261737369676e6d656e745f76657273696f6e07a47469"
            "6d65cb41dad27480000000a7626f6f745f6964a26231"
        ),
    ),
    (
        "report",
        messages.ModelReport(
            id="p1",
            model="digits",
            bundle="sha256:aa",
            boot_id="b1",
            window_start=0.0,
            window_seconds=60.0,
            latency_ms=messages.ExponentialHistogram(
                scale=3, offset=-2, counts=b"\x01\x02", sum=3.0, max=1.0
            ),
            confidence=b"\x01" * 20,
            labels={1: 2},
            counters={"requests": 3},
            drift={"ks_confidence": (0.25, 3)},
        ),
        (
            "de0010a474797065a67265706f7274a26964a27031a56d6f64656ca6646967697473a662756e646c65a97368613235363a61"
            "61a7626f6f745f6964a26231ac77696e646f775f7374617274cb0000000000000000ae77696e646f775f7365636f6e6473cb"
            "404e000000000000ac636c6f636b5f6f6666736574cb0000000000000000aa6c6174656e63795f6d739703fec402010200cb"
            "4008000000000000cb0000000000000000cb3ff0000000000000a9656e657267795f6d6a970000c40000cb00000000000000"
            "00cb0000000000000000cb0000000000000000a871756575655f6d73970000c40000cb0000000000000000cb000000000000"
            "0000cb0000000000000000ad656e657267795f736f75726365a0aa636f6e666964656e6365c4140101010101010101010101"
            "010101010101010101a66c6162656c73810102a8636f756e7465727381a8726571756573747303a5647269667481ad6b735f"
            "636f6e666964656e636592cb3fd000000000000003"
        ),
    ),
    (
        "request",
        messages.HardRequest(
            id="q1",
            model="digits",
            bundle="sha256:aa",
            inputs=(messages.Tensor(name="image", datatype="FP32", shape=(1,), data=b"\0\0\0\0"),),
            score=0.5,
            provisional=3,
            data_class="raw",
            time=1.0,
            expires=2.0,
        ),
        (
            "8aa474797065ac686172645f72657175657374a26964a27131a56d6f64656ca6646967697473a662756e646c65a973686132"
            "35363a6161a6696e707574739184a46e616d65a5696d616765a86461746174797065a446503332a573686170659101a46461"
            "7461c40400000000a573636f7265cb3fe0000000000000ab70726f766973696f6e616c03aa646174615f636c617373a37261"
            "77a474696d65cb3ff0000000000000a765787069726573cb4000000000000000"
        ),
    ),
    (
        "manifest",
        messages.SignedStatement(statement=b"\x80", time=1795262400, signature=b"\x30\x06"),
        (
            "84a474797065b07369676e65645f73746174656d656e74a973746174656d656e74c40180a474696d65ce6b0187c0a9736967"
            "6e6174757265c4023006"
        ),
    ),
    (
        "command",
        messages.Flush(id="f1"),
        "82a474797065a5666c757368a26964a26631",
    ),
    (
        "reply",
        messages.Ack(ids=("e1", "p1")),
        "82a474797065a361636ba369647392a26531a27031",
    ),
    (
        "reply",
        messages.Answer(id="q1", model="digits", label=7, pool="cloud", cost=0.25),
        (
            "8ba474797065a6616e73776572a26964a27131a56d6f64656ca6646967697473a76f75747075747390a56c6162656c07a470"
            "6f6f6ca5636c6f7564a6726567696f6ea0ab636c6f75645f6d6f64656ca0a4636f7374cb3fd0000000000000a66a6f756c65"
            "73cb0000000000000000a56572726f72a0"
        ),
    ),
]
#: What a device signs travels inside another message; its bytes are frozen all the same.
STATEMENT = messages.Statement(
    sequence=1795262400000,
    boot_id="b1",
    agent_version="0.1.0",
    target="laptop-x86",
    models=(messages.RunningModel(model="digits", bundle="sha256:aa", version="1", release_counter=3),),
    assignment_version=4,
    refused=1,
    attack=messages.AttackIndicator(what="assignment", reason="rollback", detail="d", time=1.0),
)
STATEMENT_BYTES = (
    "8aa873657175656e6365cf000001a1fdfa4600a7626f6f745f6964a26231ad6167656e745f76657273696f6ea5302e312e30"
    "a6746172676574aa6c6170746f702d783836a66d6f64656c739184a56d6f64656ca6646967697473a662756e646c65a97368"
    "613235363a6161a776657273696f6ea131af72656c656173655f636f756e74657203b261737369676e6d656e745f76657273"
    "696f6e04af636c6f636b5f756e74727573746564c2a77265667573656401a661747461636b84a477686174aa61737369676e"
    "6d656e74a6726561736f6ea8726f6c6c6261636ba664657461696ca164a474696d65cb3ff0000000000000ae68656c645f74"
    "696d657374616d70c400"
)
DECODERS = {**codec.UPLINK, **codec.DOWNLINK}


@pytest.mark.parametrize(
    ("kind", "message", "frozen"), VECTORS, ids=[type(m).__name__ for _, m, _ in VECTORS]
)
def test_bytes_do_not_change(kind: str, message: messages.Message, frozen: str) -> None:
    raw = codec.encode(message)
    assert raw.hex() == frozen
    assert DECODERS[kind](bytes.fromhex(frozen)) == message


def test_the_bytes_of_a_statement_do_not_change() -> None:
    assert msgspec.msgpack.encode(STATEMENT).hex() == STATEMENT_BYTES
    assert statement.read(bytes.fromhex(STATEMENT_BYTES)) == STATEMENT


def test_every_message_type_has_a_frozen_vector() -> None:
    def leaves(base: type[messages.Message]) -> set[type[messages.Message]]:
        return {base} if not base.__subclasses__() else set().union(*map(leaves, base.__subclasses__()))

    ours = {m for m in leaves(messages.Message) if m.__module__ == messages.__name__}
    assert {type(m) for _, m, _ in VECTORS} == ours


def test_a_newer_peer_may_add_fields() -> None:
    newer = msgspec.msgpack.decode(codec.encode(messages.Flush(id="f1"))) | {"added_later": [1, 2]}
    assert codec.DOWNLINK["command"](msgspec.msgpack.encode(newer)) == messages.Flush(id="f1")


def test_a_message_of_another_kind_is_refused() -> None:
    with pytest.raises(WireError, match="Invalid value 'flush'"):
        codec.UPLINK["event"](codec.encode(messages.Flush(id="f1")))


def test_an_oversized_message_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(WireError, match="expected at most 1024 bytes, got 1025"):
        codec.UPLINK["status"](b"\0" * 1025)


@settings(max_examples=300)
@given(st.sampled_from(sorted(DECODERS)), st.binary(max_size=300))
def test_garbage_is_a_wire_error_and_nothing_else(kind: str, data: bytes) -> None:
    try:
        DECODERS[kind](data)
    except WireError:
        return
    raise AssertionError("random bytes decoded as a message")


@settings(max_examples=200)
@given(st.sampled_from(VECTORS), st.data())
def test_damaged_messages_never_crash_a_reader(
    vector: tuple[str, messages.Message, str], data: st.DataObject
) -> None:
    """A bit flips on the way: the message decodes to something of its type, or is refused; no third way."""
    kind, message, _ = vector
    raw = bytearray(codec.encode(message))
    place = data.draw(st.integers(0, len(raw) - 1))
    raw[place] ^= data.draw(st.integers(1, 255))
    try:
        decoded = DECODERS[kind](bytes(raw))
    except WireError:
        return
    assert isinstance(decoded, messages.Message)
