"""What the console asks before it does something that matters."""

from __future__ import annotations

from typing import Final, NamedTuple


class Ask(NamedTuple):
    """One question.

    Attributes:
        text: on the button.
        tone: the button's class.
        title, body: the question, and what will happen.
    """

    text: str
    tone: str
    title: str
    body: str


#: Move of a rollout (`fleet.rollout.states.Move`) to what is asked first.
ASKS: Final = {
    "approve": Ask(
        "Approve", "primary", "Approve and begin?", "The first group gets its assignments at once."
    ),
    "resume": Ask("Resume", "primary", "Resume this rollout?", "It goes on where it stands."),
    "promote": Ask(
        "Promote",
        "primary",
        "Begin the next group now?",
        "The next group begins without waiting for this one to reach its thresholds.",
    ),
    "pause": Ask(
        "Pause", "", "Pause this rollout?", "Devices that have begun go on and report. No other group begins."
    ),
    "roll_back": Ask(
        "Roll back",
        "danger",
        "Roll every device back?",
        "Each device that got the release, or may have got it, is told to return to what it ran before. "
        "A device that ran nothing before keeps the release.",
    ),
    "abort": Ask(
        "Abort",
        "danger",
        "Abort this rollout?",
        "Devices not begun stay as they are; those with the release keep it. This cannot be undone.",
    ),
}

#: What empty pages say to type next; SERVER is this server's address. A test parses each as `kedge` would.
HINTS: Final = {
    "enrol": """\
kedge device claim --server SERVER
kedge agent enroll --server SERVER --claim TOKEN
kedge agent run""",
    "release": """\
kedge compile model.onnx --target laptop-x86 --calibration cal.npz --evaluation eval.npz --out model.bundle
kedge publish model.bundle --model-version 1.0.0 --server SERVER""",
    "rollout": "kedge rollout create MODEL@1.0.0 --groups 1,10%,100% --approve --server SERVER",
    "device": "kedge rollout create MODEL@1.0.0 --device DEVICE --approve --server SERVER",
    "flush": "kedge device flush DEVICE --server SERVER",
    "pool": "kedge pool add shop grpc://127.0.0.1:8081 --region on-site --model MODEL=MODEL --server SERVER",
}


def hints(server: str) -> dict[str, str]:
    """Return the commands with this server's address in them."""
    return {name: text.replace("SERVER", server) for name, text in HINTS.items()}
