"""Documentation that is run: `console` blocks with a name before each `$`, and what is printed below."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

_BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_PROMPT = re.compile(r"([a-z]+)\$ (.+)")
#: What differs from run to run: ids of keys, fingerprints, dates.
_VARYING = (
    (re.compile(r"\b[0-9a-f]{32}\b"), "<fingerprint>"),
    (re.compile(r"\b[0-9a-f]{8}\b"), "<keyid>"),
    (re.compile(r"\b20\d\d-\d\d-\d\d(T\d\d:\d\d:\d\dZ)?"), "<date>"),
)


@dataclass
class Step:
    """One command of a page.

    Attributes:
        person: whose prompt it is typed at.
        printed: the lines that the page shows below it; none says nothing about them.
    """

    section: str
    person: str
    command: str
    printed: list[str] = field(default_factory=list)


def steps(page: Path) -> Iterator[Step]:
    """Yield every command in a page's console blocks, in order."""
    text = page.read_text()
    for block in _BLOCK.finditer(text):
        heading = re.findall(r"^#+ (.+)$", text[: block.start()], re.MULTILINE)[-1]
        step: Step | None = None
        for line in block[1].splitlines():
            prompt = _PROMPT.fullmatch(line)
            if prompt is not None:
                if step is not None:
                    yield step
                step = Step(heading, prompt[1], prompt[2])
            elif step is None:
                raise AssertionError(f"{page}: a block begins with what is printed: {line}")
            else:
                step.printed.append(line)
        if step is not None:
            yield step


def usual(line: str) -> str:
    """Return a line without what differs from run to run."""
    for pattern, name in _VARYING:
        line = pattern.sub(name, line)
    return " ".join(line.split())


def matches(shown: list[str], printed: list[str]) -> bool:
    """Return whether a page shows what was printed; a line `...` stands for any lines."""
    pattern = "\n".join(
        r"(?:.*\n)*?.*" if line.strip() == "..." else re.escape(usual(line)) for line in shown
    )
    return re.fullmatch(pattern, "\n".join(map(usual, printed))) is not None
