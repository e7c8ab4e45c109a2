"""What the agent says of itself, and of the cloud's later answers: the pages below `/kedge/v1`."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from device_agent.adapters.outbox import Outbox, Question
from device_agent.agent import Agent, Parts
from device_agent.gateway import SiteGateway
from device_agent.serving.engine import Engine
from device_agent.serving.rest import Reply, as_json
from device_agent.serving.tensors import from_bytes
from fleet.wire import codec
from fleet.wire.messages import Answer

_ANSWER: Final = codec.DOWNLINK["reply"]


class Pages:
    """Answers `status`, `answers` and `answers/<request id>`."""

    def __init__(
        self, agent: Agent, parts: Parts, engine: Engine, gateway: SiteGateway | None = None
    ) -> None:
        """Speak of this agent."""
        self._agent: Final = agent
        self._parts: Final = parts
        self._engine: Final = engine
        self._gateway: Final = gateway

    async def __call__(self, path: tuple[str, ...], query: dict[str, list[str]]) -> Reply | None:
        """Return a page, None when there is none of that path."""
        await self._engine.observed()
        match path:
            case ("status",):
                return as_json(self.status())
            case ("answers",):
                return self._since(query.get("since", ["0"])[0])
            case ("answers", request_id):
                return _answer(self._parts.outbox, request_id)
        return None

    def status(self) -> dict[str, object]:
        """Return where everything stands."""
        parts, agent = self._parts, self._agent
        hello = agent.hello()
        return {
            "device_id": str(parts.device),
            "agent_version": hello.agent_version,
            "boot_id": hello.boot_id,
            "target": hello.target,
            "connected": agent.connected,
            "models": [
                {
                    **msgspec.to_builtins(driver.data.slot),
                    "reason": driver.data.reason,
                    "detail": driver.data.detail,
                    "measured": driver.data.measured,
                    "candidate": driver.data.candidate.bundle.digest if driver.data.candidate else "",
                    "serving": self._serving(model),
                }
                for model, driver in list(agent.drivers.items())
            ],
            "outbox": {
                "waiting": parts.outbox.counts(),
                "bytes": hello.outbox_bytes,
                "dropped": parts.outbox.dropped,
            },
            "counters": {**parts.telemetry.totals, "malformed": agent.malformed},
            "assignment_version": hello.assignment_version,
            "clock_untrusted": hello.clock_untrusted,
            "gates": list(hello.gates),
            "firmware": hello.firmware,
            "site": self._gateway.status() if self._gateway is not None else None,
        }

    def _serving(self, model: str) -> str:
        slot = self._engine.slot(model)
        instance = slot.canary.instance if slot.canary else slot.active
        return instance.digest if instance else ""

    def _since(self, text: str) -> Reply:
        try:
            since = float(text)
        except ValueError:
            return as_json({"error": f"since: expected seconds since the Unix epoch, got {text[:40]!r}"}, 400)
        return as_json({"answers": [_page(x) for x in self._parts.outbox.answers_since(since)]})


def _answer(outbox: Outbox, request_id: str) -> Reply:
    question = outbox.question(request_id)
    if question is None:
        return as_json({"error": "no such request was asked of the cloud"}, 404)
    return as_json(_page(question), 200 if question.answer is not None else 202)


def _page(question: Question) -> dict[str, Any]:
    page: dict[str, Any] = {
        "request_id": question.id,
        "model": question.model,
        "provisional_label": question.provisional,
        "asked": question.asked,
        "state": "waiting",
    }
    answer = _ANSWER(question.answer) if question.answer is not None else None
    if not isinstance(answer, Answer):
        return page
    return {
        **page,
        "state": "failed" if answer.error else "answered",
        "answered": question.answered,
        "label": answer.label,
        "pool": answer.pool,
        "region": answer.region,
        "cloud_model": answer.cloud_model,
        "cost": answer.cost,
        "joules": answer.joules,
        "error": answer.error,
        "outputs": [
            {
                "name": x.name,
                "datatype": x.datatype,
                "shape": list(x.shape),
                "data": from_bytes(x.name, x.datatype, x.shape, x.data).ravel().tolist(),
            }
            for x in answer.outputs
        ],
    }
