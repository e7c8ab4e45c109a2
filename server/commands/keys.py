"""`kedge keys`."""

from __future__ import annotations

import click

from server.commands.keys_begin import generate, init
from server.commands.keys_change import add, discard, extend, project, revoke, rotate, threshold
from server.commands.keys_server import fetch, list_keys, renew, upload
from server.commands.keys_sign import merge, review_command, sign


@click.group()
def keys() -> None:
    """Keep the keys that devices trust: on the server, or offline with several people."""


for _command in (
    list_keys,
    renew,
    generate,
    init,
    add,
    revoke,
    rotate,
    threshold,
    project,
    extend,
    review_command,
    sign,
    merge,
    discard,
    fetch,
    upload,
):
    keys.add_command(_command)
