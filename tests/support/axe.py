"""Accessibility by axe-core, in a page that is open in a browser."""

from __future__ import annotations

import json
from typing import Final

from playwright.sync_api import Page

from console import axe_source

#: WCAG 2.2 AA, and what else axe-core advises.
RULES: Final = ("wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice")


def axe(page: Page, *rules: str) -> list[str]:
    """Return what axe-core finds against WCAG 2.2 AA, or only these rules, one line per rule."""
    # Evaluated through the debugger: the page's own policy lets no foreign script in.
    page.evaluate(axe_source())
    found = page.evaluate("rules => axe.run(document, {runOnly: rules})", list(rules or RULES))
    return [
        f"{rule['id']}: {json.dumps([node['html'][:160] for node in rule['nodes'][:3]])}"
        for rule in found["violations"]
    ]
