"""Scopes: what a token may do that has no role, and within which models and labels.

A request passes when *one* grant covers all of it: the models of one are never taken together with the labels
of another, and a limit that a scope does not know is refused when the token is made rather than overlooked
when it is used (CVE-2024-46948, CVE-2026-33552: filters that were merged or left out).
"""

from __future__ import annotations

import enum
import re
import shlex
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Final

import msgspec

from server.errors import InvalidError
from server.services.people.labels import checked_labels

_PATTERN: Final = re.compile(r"[a-z0-9*?][a-z0-9._*?-]{0,62}\Z")
MAX_GRANTS: Final = 32
MAX_MODELS: Final = 32


class Scope(str, enum.Enum):
    """What a token may be made for. What is in none of them takes a role."""

    METRICS_READ = "metrics:read"
    AUDIT_READ = "audit:read"
    DEVICES_READ = "devices:read"
    DEVICES_WRITE = "devices:write"
    CLAIMS_WRITE = "claims:write"
    RELEASES_READ = "releases:read"
    RELEASES_PUBLISH = "releases:publish"
    ROLLOUTS_READ = "rollouts:read"
    ROLLOUTS_WRITE = "rollouts:write"


class ScopeRule(msgspec.Struct, frozen=True, kw_only=True):
    """What holds for one scope.

    Attributes:
        role: name of the role that whoever makes such a token needs.
        models, labels: a grant may be limited by these.
        about: what it lets one do.
    """

    role: str
    models: bool = False
    labels: bool = False
    about: str


RULES: Final[Mapping[Scope, ScopeRule]] = {
    Scope.METRICS_READ: ScopeRule(role="viewer", about="read metrics and how the server is"),
    Scope.AUDIT_READ: ScopeRule(role="admin", about="read, check and export the audit log"),
    Scope.DEVICES_READ: ScopeRule(role="viewer", labels=True, about="list and show devices"),
    Scope.DEVICES_WRITE: ScopeRule(role="operator", labels=True, about="label devices, have them send"),
    Scope.CLAIMS_WRITE: ScopeRule(
        role="operator", labels=True, about="make claims that give new devices these labels"
    ),
    Scope.RELEASES_READ: ScopeRule(role="viewer", models=True, about="list and show releases"),
    Scope.RELEASES_PUBLISH: ScopeRule(role="releaser", models=True, about="upload bundles, release them"),
    Scope.ROLLOUTS_READ: ScopeRule(role="viewer", models=True, about="list and show rollouts"),
    Scope.ROLLOUTS_WRITE: ScopeRule(
        role="operator", models=True, labels=True, about="create and steer rollouts"
    ),
}


class Grant(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One scope of a token, with its limits.

    Attributes:
        models: patterns such as "digits-*", of which one must fit; none: every model.
        labels: each must be there with this value; none: every device.
    """

    scope: Scope
    models: tuple[str, ...] = ()
    labels: dict[str, str] = {}

    @property
    def limited(self) -> bool:
        """Whether it is for some models or devices only."""
        return bool(self.models or self.labels)

    def fits(self, *, model: str | None = None, labels: Mapping[str, str] | None = None) -> bool:
        """Return whether it covers what has this model and these labels.

        Args:
            model: None where the thing has none, which then is outside every limit to models.
            labels: None likewise.
        """
        if self.models and not any(fnmatchcase(model or "", pattern) for pattern in self.models):
            return False
        return all((labels or {}).get(key) == value for key, value in self.labels.items())

    def check(self) -> None:
        """Check its limits.

        Raises:
            InvalidError: a limit has another form, or the scope knows no such limit.
        """
        rule = RULES[self.scope]
        if self.models and not rule.models:
            raise InvalidError(f"scope {self.scope.value}: expected no models, it is not about any")
        if self.labels and not rule.labels:
            raise InvalidError(f"scope {self.scope.value}: expected no labels, it cannot be limited by them")
        if len(self.models) > MAX_MODELS:
            raise InvalidError(f"scope: expected at most {MAX_MODELS} models, got {len(self.models)}")
        for pattern in self.models:
            if not _PATTERN.match(pattern):
                raise InvalidError(f"model: expected a name, * and ? may stand in it, got {pattern!r}")
        checked_labels(self.labels)

    def __str__(self) -> str:
        """Return it as `parse_grant` reads it."""
        words = [self.scope.value, *(f"model={model}" for model in self.models)]
        words += [f"label={key}={value}" for key, value in self.labels.items()]
        return " ".join(shlex.quote(word) if " " in word else word for word in words)


def check_grants(grants: Iterable[Grant]) -> tuple[Grant, ...]:
    """Return the grants, checked.

    Raises:
        InvalidError: too many, or one is wrong.
    """
    found = tuple(grants)
    if len(found) > MAX_GRANTS:
        raise InvalidError(f"scopes: expected at most {MAX_GRANTS}, got {len(found)}")
    for grant in found:
        grant.check()
    return found


def parse_grant(text: str) -> Grant:
    """Read a grant as people write it: `rollouts:write model=digits-* label=site=north`.

    Raises:
        InvalidError: it has another form.
    """
    try:
        name, *limits = shlex.split(text)
        scope = Scope(name)
    except ValueError:
        known = ", ".join(scope.value for scope in Scope)
        raise InvalidError(f"scope: expected one of {known}, got {text!r}") from None
    models: list[str] = []
    labels: dict[str, str] = {}
    for limit in limits:
        kind, _, value = limit.partition("=")
        key, separator, wanted = value.partition("=")
        if kind == "model":
            models.append(value)
        elif kind == "label" and separator and labels.setdefault(key, wanted) == wanted:
            continue
        else:
            raise InvalidError(f"scope: expected model=PATTERN or label=KEY=VALUE, got {limit!r}")
    grant = Grant(scope=scope, models=tuple(models), labels=labels)
    grant.check()
    return grant
