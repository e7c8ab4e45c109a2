"""The cloud's answers to hard requests come back with the next kit: signed for, whole, and each once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from device_agent.adapters.clock import SystemClock
from device_agent.adapters.inbox import Outcome
from device_agent.adapters.outbox import Question, Record
from device_agent.errors import KitError
from device_agent.observing import Offload
from fleet.errors import TrustError
from fleet.ids import Digest
from fleet.wire import codec, kit
from fleet.wire.kit import Answers
from fleet.wire.messages import Answer, HardRequest, Tensor
from kit_world import CarriedDevice, KitWorld
from memory_folder import memory_folder
from server.services.health import Health
from server.services.offload.offload_queue import OffloadQueue
from trust_world import DAY, START


class Carried:
    """A fleet that is reached by stick alone, with a queue for hard requests, and a device."""

    def __init__(self, folder: Path) -> None:
        self.world = KitWorld(folder)
        self.queue = OffloadQueue(self.world.parts.database, self.world.parts.clock, Health())
        self.device = CarriedDevice(self.world, "mine-4")
        self.world.release("1.0")
        self.world.assign("mine-4", 1)

    def ask(self, name: str, size: int = 4) -> HardRequest:
        """Have the device put a question into its outbox, and the server get it by a stick."""
        request = HardRequest(
            id=name, model="digits", bundle=str(Digest.of(b"b")),
            inputs=(Tensor(name="x", datatype="BYTES", shape=(size,), data=bytes(size)),),
            score=0.5, provisional=1, data_class="raw", time=START, expires=START + DAY,
        )  # fmt: skip
        record = Record(request.id, "request", codec.encode(request), 0.0, request.expires)
        assert self.device.outbox.ask(record, Question(name, "digits", 1, START, None, None), 10**9)
        self.queue.submit(self.device.name, request)
        return request

    def answer(self, label: int = 7, size: int = 4) -> None:
        """Have the cloud answer all that was asked."""
        for job in self.queue.take(100):
            outputs = (Tensor(name="y", datatype="BYTES", shape=(size,), data=bytes(size)),)
            self.queue.finish(
                job, Answer(id=job.request.id, model="digits", outputs=outputs, label=label, pool="gpu")
            )

    def bring(self) -> tuple[Answer, ...]:
        """Carry a new kit to the device; return the answers that it brought."""
        self.world.export("mine-4")
        self.device.bring_in()
        return self.device.take().answers


@pytest.fixture
def carried(tmp_path: Path) -> Iterator[Carried]:
    with memory_folder(tmp_path) as folder:
        yield Carried(folder)


def test_an_answer_comes_back_with_the_next_kit_and_counts_once(carried: Carried) -> None:
    """It lands where an answer over MQTT lands, and ends the request; a second stick repeats it in vain."""
    carried.ask("hard-1")
    assert carried.bring() == ()
    carried.answer()
    counted: list[str] = []
    offload = Offload(carried.device.outbox, SystemClock(), {}, lambda _model, what: counted.append(what))
    for _ in range(2):
        (answer,) = carried.bring()
        assert (answer.id, answer.label, answer.pool) == ("hard-1", 7, "gpu")
        offload.answered(answer)
        carried.device.inbox.finish(Outcome(version=1))
    assert counted == ["answered_by_cloud", "cloud_disagreed"]
    question = carried.device.outbox.question("hard-1")
    assert question is not None
    assert question.answer is not None
    assert carried.device.outbox.counts().get("request", 0) == 0


def test_an_answer_that_the_broker_took_in_vain_is_carried_all_the_same(carried: Carried) -> None:
    """The server has a broker, and the device none: what was published there nobody has heard."""
    carried.ask("hard-1")
    carried.answer()
    carried.queue.delivered(carried.queue.undelivered())
    assert [x.id for x in carried.bring()] == ["hard-1"]


@pytest.mark.parametrize("lie", [b"", b"\x00" * 50, kit.encode(Answers(answers=(b"\xc1",)))])
def test_answers_that_somebody_made_up_are_refused(carried: Carried, lie: bytes) -> None:
    """Who finds the stick writes answers of his own: the receipt names others, and nothing is taken."""
    carried.ask("hard-1")
    carried.answer()
    carried.world.export("mine-4")
    carried.world.stick.joinpath(*kit.answers(carried.device.name)).write_bytes(lie)
    with pytest.raises(KitError, match="what the receipt names"):
        carried.device.bring_in()


def test_answers_without_a_receipt_are_nobodys(carried: Carried) -> None:
    """A thief takes the receipt away, or writes one: the answers do not count without the director's word."""
    carried.ask("hard-1")
    carried.answer()
    carried.world.export("mine-4")
    path = carried.world.stick.joinpath(*kit.receipt(carried.device.name))
    signed = path.read_bytes()
    path.unlink()
    carried.device.bring_in()
    assert carried.device.take().answers == ()
    answers = carried.world.stick.joinpath(*kit.answers(carried.device.name))
    forged = kit.encode(Answers(answers=()))
    path.write_bytes(
        signed.replace(str(Digest.of(answers.read_bytes())).encode(), str(Digest.of(forged)).encode())
    )
    answers.write_bytes(forged)
    with pytest.raises(TrustError, match="signed by 0"):
        carried.device.bring_in()


def test_more_answers_than_a_kit_takes_come_the_newest_first(carried: Carried) -> None:
    """Twenty large ones: those that fit come, whole, and the file stays within what a device reads."""
    for number in range(20):
        carried.ask(f"hard-{number}")
        carried.answer(size=60_000)
        carried.world.parts.clock.seconds += 1
    found = [x.id for x in carried.bring()]
    assert found == [f"hard-{number}" for number in range(19, 19 - len(found), -1)]
    assert 5 < len(found) < 20
