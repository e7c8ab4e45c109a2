"""Files of the server and of ceremonies, written where others may have put something in the way."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from server.durable import write_file


def test_no_link_is_followed(tmp_path: Path) -> None:
    """Mallory has had the stick, and put links where a file is going to be written, to a file of Alice's.

    What Alice writes next must come to the stick, and must leave her own file alone.
    """
    stick, hers = tmp_path / "stick", tmp_path / "alice.pem"
    stick.mkdir()
    hers.write_bytes(b"her key")
    for name in ("root.json", f".root.json.{os.getpid()}.tmp", ".root.json.tmp"):
        (stick / name).symlink_to(hers)
    write_file(stick / "root.json", b"signed", mode=0o640)
    assert hers.read_bytes() == b"her key"
    assert not (stick / "root.json").is_symlink()
    assert (stick / "root.json").read_bytes() == b"signed"
    assert stat.S_IMODE((stick / "root.json").stat().st_mode) == 0o640


def test_what_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "root.json").mkdir()
    with pytest.raises(OSError, match=r"root\.json"):
        write_file(tmp_path / "root.json", b"signed")
    assert [path.name for path in tmp_path.iterdir()] == ["root.json"]
