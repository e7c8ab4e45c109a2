"""How a state looks: its word, its shape and its tone, so that colour never stands alone."""

from __future__ import annotations

from typing import Final, NamedTuple


class Look(NamedTuple):
    """One state's look.

    Attributes:
        name: the state, as stored or as the URL names it.
        text: the word that is shown.
        tone: "ok", "warn", "bad", "busy", "sec" or "idle": the colour.
        mark: the shape beside the word.
    """

    name: str
    text: str
    tone: str
    mark: str


def _table(*rows: tuple[str, str, str, str]) -> dict[str, Look]:
    return {row[0]: Look(*row) for row in rows}


#: A device that refused something, or in whose name something was forged: beside its state, whatever that is.
ALARM: Final = Look("alarm", "did not verify", "sec", "sec")
#: What a device needs, worst first: a device shows the first that holds.
DEVICE: Final = _table(
    ("failed", "rolled back", "bad", "bad"),
    ("late", "late", "warn", "late"),
    ("updating", "updating", "busy", "busy"),
    ("holding", "holding back", "warn", "pause"),
    ("waiting", "update waits", "idle", "idle"),
    ("ok", "up to date", "ok", "ok"),
    ("empty", "no model", "idle", "idle"),
    ("leaving", "wipes itself", "idle", "pause"),
    ("revoked", "revoked", "idle", "bad"),
)
#: Steps of an update (`fleet.wire.messages.UpdateState`).
UPDATE: Final = _table(
    ("idle", "idle", "idle", "idle"),
    ("downloading", "downloading", "busy", "busy"),
    ("verifying", "verifying", "busy", "busy"),
    ("staged", "staged", "busy", "busy"),
    ("loading", "loading", "busy", "busy"),
    ("golden_check", "golden check", "busy", "busy"),
    ("shadow", "shadow", "busy", "busy"),
    ("canary", "canary", "busy", "busy"),
    ("committed", "committed", "ok", "ok"),
    ("rolling_back", "rolling back", "bad", "busy"),
    ("rolled_back", "rolled back", "bad", "bad"),
)
#: The order of a good update, for the diagram.
STEPS: Final = (
    "downloading",
    "verifying",
    "staged",
    "loading",
    "golden_check",
    "shadow",
    "canary",
    "committed",
)
#: Rollouts (`fleet.rollout.states.RolloutState`).
ROLLOUT: Final = _table(
    ("waiting_for_approval", "waits for approval", "warn", "pause"),
    ("running", "running", "busy", "busy"),
    ("paused", "paused", "warn", "pause"),
    ("halted", "halted", "bad", "bad"),
    ("aborted", "aborted", "idle", "bad"),
    ("finished", "finished", "ok", "ok"),
    ("rolling_back", "rolling back", "bad", "busy"),
    ("rolled_back", "rolled back", "idle", "bad"),
)
#: Groups of a rollout (`fleet.rollout.states.GroupState`).
GROUP: Final = _table(
    ("scheduled", "scheduled", "idle", "idle"),
    ("running", "running", "busy", "busy"),
    ("finished", "finished", "ok", "ok"),
    ("error", "stopped", "bad", "bad"),
    ("canceled", "canceled", "idle", "bad"),
)
#: One device's part in a rollout (`fleet.rollout.states.ActionStatus`), in the order that bars show.
ACTION: Final = _table(
    ("succeeded", "succeeded", "ok", "ok"),
    ("failed", "failed", "bad", "bad"),
    ("timed_out", "timed out", "bad", "late"),
    ("rejected", "rejected", "bad", "bad"),
    ("reverting", "going back", "warn", "busy"),
    ("reverted", "went back", "warn", "ok"),
    ("in_progress", "updating", "busy", "busy"),
    ("assigned", "assigned", "idle", "idle"),
    ("queued", "queued", "idle", "idle"),
    ("canceled", "canceled", "idle", "bad"),
)
#: Pools of cloud accelerators: their state, or their breaker's while that is not closed.
POOL: Final = _table(
    ("active", "takes requests", "ok", "ok"),
    ("draining", "draining", "idle", "pause"),
    ("open", "rests after failures", "bad", "bad"),
    ("probing", "tries again", "warn", "busy"),
)
#: Signed metadata, by what the nearest expiry or signature means.
TRUST: Final = _table(
    ("ok", "well", "ok", "ok"),
    ("soon", "needs you", "warn", "late"),
    ("bad", "holds devices up", "bad", "bad"),
)


def look(table: dict[str, Look], name: str) -> Look:
    """Return a state's look; one that the table does not know yet is shown by its own name."""
    return table.get(name) or Look(name, name.replace("_", " ") or "unknown", "idle", "idle")
