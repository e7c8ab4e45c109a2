"""The folder that `kedge broker config` writes, and the user that mosquitto runs as."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from kedge.cli import cli

NOBODY = 65534


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_root_writes_a_set_up_again_and_mosquitto_can_still_read_it(tmp_path: Path) -> None:
    """A device joins a site: root writes the rules again, and does not lock the broker's user out."""
    out = tmp_path / "broker"
    command = ["broker", "config", "--data", str(tmp_path / "data"), "--out", str(out), "--host", "127.0.0.1"]
    assert CliRunner().invoke(cli, command).exit_code == 0
    for path in (out, *out.iterdir()):
        os.chown(path, NOBODY, NOBODY)
    assert CliRunner().invoke(cli, command).exit_code == 0
    assert {(x.stat().st_uid, x.stat().st_gid) for x in out.iterdir()} == {(NOBODY, NOBODY)}
    assert (out / "broker.key.pem").stat().st_mode & 0o077 == 0
