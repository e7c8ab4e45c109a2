"""The server's commands, by the names under which `kedge` loads them."""

from __future__ import annotations

from server.commands.audit import audit
from server.commands.broker import broker
from server.commands.device import device
from server.commands.keys import keys
from server.commands.kit import kit
from server.commands.pool import pool
from server.commands.project import project
from server.commands.publish import publish
from server.commands.release import release
from server.commands.rollout import rollout
from server.commands.serve import serve
from server.commands.token import token
from server.commands.user import user

__all__ = [
    "audit",
    "broker",
    "device",
    "keys",
    "kit",
    "pool",
    "project",
    "publish",
    "release",
    "rollout",
    "serve",
    "token",
    "user",
]
