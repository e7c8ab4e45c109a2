"""Who has signed a project's next files, and putting together what several have signed."""

from __future__ import annotations

from collections.abc import Mapping

from tuf.api.metadata import Metadata, Targets

from fleet.trust import metadata_set as rules
from fleet.trust import repository, signatures
from fleet.trust.repository import Project
from server.errors import InvalidError
from server.services.trust.adopt import Overlay
from server.services.trust.store import parse_name


def same(kept: Mapping[str, str], files: Mapping[str, str]) -> bool:
    """Return whether files say the same as those that wait, whoever has signed them."""
    return kept.keys() == files.keys() and all(
        _parsed(name, text).signed_bytes == _parsed(name, files[name]).signed_bytes
        for name, text in kept.items()
    )


def _parsed(name: str, text: str) -> Metadata[Targets]:
    return rules.parse(Targets, text.encode(), name)


def gathered(
    kept: Mapping[str, str], files: Mapping[str, str], overlay: Overlay, project: Project
) -> dict[str, str]:
    """Return the files with the good signatures of those that wait and of those that were handed in."""
    found = {}
    for name, text in files.items():
        role = (parse_name(name) or ("", 0))[0]
        one, other = _parsed(name, kept.get(name, text)), _parsed(name, text)
        delegator = _delegator(overlay, project, role)
        found[name] = signatures.gathered(one, other, [delegator], role).to_bytes().decode()
    return found


def _delegator(overlay: Overlay, project: Project, role: str) -> Targets:
    own = overlay.files.get(project.name)
    delegator = overlay.targets if role == project.name else own
    if delegator is None:
        raise InvalidError(f"{role}: its project has signed nothing")
    return delegator


def signed_by(overlay: Overlay, project: Project) -> set[str]:
    """Return the ids of the keys that have signed every file that changes."""
    found: set[str] | None = None
    for role, data in overlay.changed.items():
        metadata = rules.parse(Targets, data, role)
        good = set(repository.good_signatures(metadata, _delegator(overlay, project, role), role))
        found = good if found is None else found & good
    return found or set()
