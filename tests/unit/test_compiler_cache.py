"""The cache of what compiling makes: whole or not at all, checked when found, bounded."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from compiler import cache, files, several
from compiler.cache import Cache
from compiler.errors import CompileError, OptionError
from compiler.requests import CompileResult
from firmware_profiles.errors import UnknownTargetError

KEY = "0" * 64


def writes(data: bytes) -> cache.Fill:
    def fill(folder: Path) -> None:
        (folder / "inner").mkdir()
        (folder / "inner" / "data").write_bytes(data)

    return fill


def test_what_was_put_is_found(tmp_path: Path) -> None:
    kept = Cache(tmp_path)
    assert kept.find(KEY) is None
    kept.put(KEY, writes(b"one"))
    found = kept.find(KEY)
    assert found is not None
    assert (found / "inner" / "data").read_bytes() == b"one"


@pytest.mark.parametrize("damage", ["altered", "cut", "gone", "added", "listing"])
def test_a_damaged_entry_is_none_and_goes(tmp_path: Path, damage: str) -> None:
    """A disk that lost power gives back zeros: better compile again than ship them."""
    kept = Cache(tmp_path)
    kept.put(KEY, writes(b"one"))
    file = tmp_path / KEY / "inner" / "data"
    if damage == "altered":
        file.write_bytes(b"two")
    elif damage == "cut":
        file.write_bytes(b"")
    elif damage == "gone":
        file.unlink()
    elif damage == "added":
        file.with_name("more").write_bytes(b"x")
    else:
        (tmp_path / KEY / "files.json").write_bytes(b"{")
    assert kept.find(KEY) is None
    assert not (tmp_path / KEY).exists()


def test_a_folder_that_others_write_to_is_no_cache(tmp_path: Path) -> None:
    """Whoever else can write there decides what a pipeline ships: a model with a back door."""
    assert cache.doubt(tmp_path / "none yet") == ""
    Cache(tmp_path / "made").put(KEY, writes(b"one"))
    assert cache.doubt(tmp_path / "made") == ""
    (tmp_path / "made").chmod(0o777)
    assert "expected a folder that others cannot write to; got mode drwxrwxrwx" in cache.doubt(
        tmp_path / "made"
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give a folder to somebody else")
def test_somebody_elses_folder_is_no_cache(tmp_path: Path) -> None:
    os.chown(tmp_path, 4711, -1)
    assert "expected a folder of your own; got one of user 4711" in cache.doubt(tmp_path)


def test_what_never_ends_has_no_digest(tmp_path: Path) -> None:
    """Data that are a pipe must be refused with a reason, not waited for: the cache looks at them first."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        with pytest.raises(OSError, match="expected a file"):
            files.digest_of(path)


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_bytes(b"x")
        raise CompileError("no")

    with pytest.raises(CompileError):
        Cache(tmp_path).put(KEY, fail)
    assert list(tmp_path.iterdir()) == []


def test_no_room_is_no_entry_and_no_error(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"")
    kept = Cache(file / "inside")
    kept.put(KEY, writes(b"one"))
    assert kept.find(KEY) is None


def test_the_entries_used_longest_ago_go_first(tmp_path: Path) -> None:
    kept = Cache(tmp_path, limit=3000)
    for index, name in enumerate("abc"):
        kept.put(name * 64, writes(bytes(1000)))
        os.utime(tmp_path / (name * 64), (index, index))
        if name == "b":
            os.utime(tmp_path / ("a" * 64), (10, 10))
    assert kept.find("b" * 64) is None
    assert kept.find("a" * 64) is not None


def test_two_processes_may_make_the_same_entry(tmp_path: Path) -> None:
    threads = [threading.Thread(target=Cache(tmp_path).put, args=(KEY, writes(b"one"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Cache(tmp_path).find(KEY) is not None
    assert [x.name for x in tmp_path.iterdir()] == [KEY]


def test_a_key_follows_from_every_part() -> None:
    keys = {cache.key("a", 1), cache.key("a", 2), cache.key("b", 1), cache.key("a1"), cache.key(["a", 1])}
    assert len(keys) == 5
    assert cache.key("a", {"x": 1, "y": 2}) == cache.key("a", {"y": 2, "x": 1})


def test_patterns_mean_targets_in_their_order_each_once() -> None:
    jetsons = several.expand(["jetson-*"])
    assert len(jetsons) == 4
    assert several.expand(["laptop-x86", "jetson-*", "jetson-thor"]) == ["laptop-x86", *jetsons]


def test_a_pattern_of_nothing_and_an_unknown_name_are_mistakes() -> None:
    with pytest.raises(OptionError, match=r"--target toaster-\*: expected a pattern of"):
        several.expand(["toaster-*"])
    with pytest.raises(UnknownTargetError):
        several.expand(["toaster"])


def test_one_target_that_fails_does_not_keep_the_others_from_it() -> None:
    tried = []

    def fail(target: str) -> CompileResult:
        tried.append(target)
        raise CompileError(f"{target} cannot")

    found = several.each(["a", "b"], fail)
    assert tried == ["a", "b"]
    assert [x.error for x in found] == ["a cannot", "b cannot"]
