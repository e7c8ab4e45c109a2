"""Text from files and from the network, made fit to be shown."""

from __future__ import annotations


def printable(text: str) -> str:
    """Return the text in one line, with every character escaped that would steer a terminal.

    These are control characters, and those that change the direction of writing.
    """
    line = " ".join(text.split())
    return "".join(x if x.isprintable() else x.encode("unicode_escape").decode() for x in line)
