"""Tool-chains in environments of their own: real environments, real processes, real kills."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

import tiny_toolchain
from compiler.errors import CompileError, LimitError
from compiler.limits import GIB
from compiler.tensors import Arrays
from compiler.toolchains import Environment, Store, pythons
from compiler.toolchains.errors import (
    LicenceError,
    MissingPythonError,
    MissingToolchainError,
    ToolchainInstallError,
)
from processes import KEDGE, wait_until
from tiny_toolchain import LIMITS, quiet, worker
from toolchains_here import needs


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A tool-chain that is installed."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        store = tiny_toolchain.write(tmp_path_factory.mktemp("tiny"), monkeypatch)
        store.install("tiny", quiet)
        yield store


def _gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def _number(file: Path) -> int:
    wait_until(lambda: file.is_file() and file.read_text().endswith("\n"), f"{file} is written")
    return int(file.read_text())


NONSENSE = r"""
import os, time
for fd in range(3, 12):
    try:
        os.write(fd, b"<html>\n")
    except OSError:
        pass
time.sleep(60)
"""

# What a worker sees, and what comes back


def test_a_worker_answers_from_a_world_of_its_own(
    tiny: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tool-chain must see neither our code nor a person's tokens, and leave its files in scratch."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("SECRET_TOKEN", "hush")
    name = worker(
        tiny,
        "look",
        "import os, sys, tempfile\n"
        "from .beside import WORD\n"
        "def call(request):\n"
        "    print('libraries print')\n"
        "    return {'prefix': sys.prefix, 'path': sys.path, 'word': WORD, 'got': request['x'],\n"
        "            'env': dict(os.environ), 'cwd': os.getcwd(), 'tmp': tempfile.gettempdir()}\n",
    )
    worker(tiny, "beside", "WORD = 'helper'\n")
    environment = tiny.environment("tiny")
    seen = environment.call(name, {"x": [1, "zwei"]}, scratch=tmp_path, limits=LIMITS)
    assert seen["prefix"] == str(environment.folder)
    assert seen["got"] == [1, "zwei"]
    assert seen["word"] == "helper"
    assert seen["cwd"] == seen["tmp"] == str(tmp_path)
    path = msgspec.convert(seen["path"], list[str])
    assert str(tmp_path) not in path
    assert str(Path(__file__).parents[2]) not in path
    surroundings = msgspec.convert(seen["env"], dict[str, str])
    assert "hush" not in surroundings.values()
    assert surroundings["HOME"] == str(tmp_path)


def test_a_served_model_answers_feed_after_feed(tiny: Store, tmp_path: Path) -> None:
    name = worker(
        tiny,
        "twice",
        "import numpy as np\ndef serve(request):\n"
        "    def run(feed):\n"
        "        if 'bad' in feed: raise ValueError('no such input')\n"
        "        return {k: np.multiply(v, request['by'], dtype=v.dtype) for k, v in feed.items()}\n"
        "    return run\n",
    )
    with tiny.environment("tiny").serve(name, {"by": 2}, scratch=tmp_path, limits=LIMITS) as runner:
        for shape in ((2, 3), (), (0, 4)):
            feed: Arrays = {"a/b": np.full(shape, 3, np.float32), "c": np.arange(4, dtype=np.int8)}
            got = runner.run(feed)
            assert got["a/b"].shape == shape
            assert got["a/b"].dtype == np.float32
            assert got["c"].tolist() == [0, 2, 4, 6]
        with pytest.raises(CompileError, match=r"tiny/twice: ValueError: no such input"):
            runner.run({"bad": np.zeros(1)})
        assert runner.run({"c": np.ones(1)})["c"] == 2  # one bad feed ends nothing


# What goes wrong in a worker


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import os, sys\nprint('ouch', file=sys.stderr)\nos.abort()\n", "SIGABRT.*ouch"),
        ("raise SystemExit('enough')\n", "code 1.*enough"),
        ("raise ValueError('two\\nlines')\n", "ValueError: two lines"),
        ("import no_such_library\n", "no_such_library"),
        ("def call(request):\n    return {'x': object()}\n", "not JSON serializable"),
        (
            NONSENSE,
            "sent something else",
        ),
    ],
)
def test_a_broken_worker_is_an_error_with_its_last_words(
    tiny: Store, tmp_path: Path, text: str, said: str
) -> None:
    """A tool-chain crashes, gives up, raises, or talks nonsense: the search must hear why, and go on."""
    name = worker(tiny, "broken", text)
    with pytest.raises(CompileError, match=f"tiny/broken: .*{said}"):
        tiny.environment("tiny").call(name, {}, scratch=tmp_path, limits=LIMITS)


@pytest.mark.parametrize(
    ("text", "limits"),
    [
        ("import time\ntime.sleep(60)\n", {"wall_s": 0.5}),
        ("while True: pass\n", {"cpu_s": 1}),
        ("x = bytearray(8 * 1024**3)\n", {"memory_bytes": GIB}),
    ],
)
def test_a_worker_that_takes_too_much_is_stopped(
    tiny: Store, tmp_path: Path, text: str, limits: dict[str, float]
) -> None:
    name = worker(tiny, "greedy", text)
    with pytest.raises(LimitError):
        tiny.environment("tiny").call(
            name, {}, scratch=tmp_path, limits=msgspec.structs.replace(LIMITS, **limits)
        )


def test_what_a_worker_started_ends_with_it(tiny: Store, tmp_path: Path) -> None:
    """A tool-chain starts programs of its own and hangs: none of them may stay behind."""
    name = worker(
        tiny,
        "parent",
        "import subprocess, time\n"
        "child = subprocess.Popen(['sleep', '600'])\n"
        "open('child', 'w').write(f'{child.pid}\\n')\n"
        "time.sleep(600)\n",
    )
    with pytest.raises(LimitError, match="expected an answer within 1 s"):
        tiny.environment("tiny").call(
            name, {}, scratch=tmp_path, limits=msgspec.structs.replace(LIMITS, wall_s=1)
        )
    child = _number(tmp_path / "child")
    wait_until(lambda: _gone(child), "the child ends")


def test_a_worker_ends_with_the_program_that_called_it(tiny: Store, tmp_path: Path) -> None:
    """`kedge compile` is killed with -9 in the middle of a call: the tool-chain must not compute on."""
    name = worker(
        tiny,
        "orphan",
        "import os, time\nopen('pid', 'w').write(f'{os.getpid()}\\n')\ntime.sleep(600)\n",
    )
    call = (
        "from pathlib import Path; from compiler.toolchains import Store; from tiny_toolchain import LIMITS\n"
        f"store = Store(root=Path({str(tiny.root)!r}), definitions=Path({str(tiny.definitions)!r}), "
        f"workers=Path({str(tiny.workers)!r}))\n"
        f"store.environment('tiny').call({name!r}, {{}}, scratch=Path({str(tmp_path)!r}), limits=LIMITS)\n"
    )
    support = str(Path(tiny_toolchain.__file__).parent)
    caller = subprocess.Popen([sys.executable, "-c", call], env={**os.environ, "PYTHONPATH": support})
    try:
        pid = _number(tmp_path / "pid")
    finally:
        caller.kill()
        caller.wait()
    wait_until(lambda: _gone(pid), "the worker ends")


# Installing


def test_a_missing_toolchain_names_its_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = tiny_toolchain.write(tmp_path, monkeypatch)
    with pytest.raises(MissingToolchainError, match=r"kedge toolchain install tiny$"):
        store.environment("tiny")
    assert not store.remove("tiny")


def test_terms_are_accepted_by_a_person_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terms = '[licence]\nname = "Tiny Terms"\nnotice = "Be kind."'
    store = tiny_toolchain.write(tmp_path, monkeypatch, extra=terms)
    with pytest.raises(LicenceError, match=r"Tiny Terms.*kedge toolchain install tiny --accept-licence"):
        store.install("tiny", quiet)
    store.install("tiny", quiet, accept_licence=True)
    store.install("tiny", quiet)  # it is there: nobody is asked again


def test_a_machine_without_the_python_hears_which_one_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tiny_toolchain.write(tmp_path, monkeypatch, python=">=3.99")
    with pytest.raises(MissingPythonError, match=r"needs Python >=3\.99"):
        store.install("tiny", quiet)
    assert not store.has("tiny")


def test_a_python_that_does_not_start_is_passed_over(tmp_path: Path) -> None:
    """The shims of pyenv stand on PATH for every version, and fail where it is not selected."""
    shim = tmp_path / "python3.11"
    shim.write_text("#!/bin/sh\nexit 127\n")
    shim.chmod(0o755)
    ours = Path(sys.executable)
    assert pythons.find(">=3.10", [shim, tmp_path / "nowhere", ours]) == ours


def test_another_file_than_the_locked_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody swaps a wheel in the registry: its hash is not the locked one, and nothing is installed."""
    store = tiny_toolchain.write(tmp_path, monkeypatch)
    tiny_toolchain.lock(tmp_path, "1.0", digest="0" * 64)
    with pytest.raises(ToolchainInstallError, match=r"(?i)hash"):
        store.install("tiny", quiet)
    assert not store.has("tiny")
    assert not list(store.root.glob("tiny-*"))


def test_an_environment_that_does_not_work_is_no_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The import succeeds and the interpreter dies: the health check builds one, and says so."""
    store = tiny_toolchain.write(tmp_path, monkeypatch)
    worker(store, "health", "def call(request):\n    raise SystemError('numpy 2')\n")
    with pytest.raises(ToolchainInstallError, match=r"does not work once installed: .*numpy 2"):
        store.install("tiny", quiet)
    assert not list(store.root.glob("tiny-*"))


def test_a_new_lock_makes_a_new_environment_and_the_old_one_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tiny_toolchain.write(tmp_path, monkeypatch)
    old = store.install("tiny", quiet).folder
    (store.root / "tiny-2-0123456789ab").mkdir()  # another tool-chain's
    tiny_toolchain.lock(tmp_path, "2.0")
    assert not store.has("tiny")
    new = store.install("tiny", quiet).folder
    assert new.is_dir()
    assert not old.exists()
    assert store.remove("tiny")
    assert [x.name for x in store.root.glob("tiny-*")] == ["tiny-2-0123456789ab"]


def test_an_installation_that_is_killed_leaves_nothing_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine loses power in the last step: the next attempt starts over, and nobody used the rest."""
    store = tiny_toolchain.write(tmp_path, monkeypatch)
    pid = tmp_path / "pid"
    worker(
        store,
        "health",
        f"import os, time\nopen({str(pid)!r}, 'w').write(f'{{os.getpid()}}\\n')\ntime.sleep(600)",
    )
    child = os.fork()
    if not child:
        store.install("tiny", quiet)
        os._exit(0)
    worker_pid = _number(pid)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    wait_until(lambda: _gone(worker_pid), "the health check ends")
    assert not store.has("tiny")
    worker(store, "health", tiny_toolchain.HEALTHY)
    assert store.install("tiny", quiet).versions == {"tiny": "1.0"}


def test_two_installations_at_once_make_one_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tiny_toolchain.write(tmp_path, monkeypatch)
    counted = "open(__file__ + '.runs', 'a').write('x')\n" + tiny_toolchain.HEALTHY
    worker(store, "health", counted)
    made: list[Environment] = []
    threads = [threading.Thread(target=lambda: made.append(store.install("tiny", quiet))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({x.folder for x in made}) == 1
    assert len(made) == 2
    assert (store.workers / "health.py.runs").read_text() == "x"


def test_pip_installs_where_there_is_no_uv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody leaves a `pip.py` in a folder of models, where Python would look first: it is not run."""
    store = tiny_toolchain.write(tmp_path, monkeypatch)
    for trap in ("pip.py", "venv.py"):
        (tmp_path / trap).write_text("raise SystemExit('trapped')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KEDGE_UV", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert store.install("tiny", quiet).versions == {"tiny": "1.0"}


# The commands, and the tool-chains that Kedge defines


def _kedge(*words: str, root: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [KEDGE, *words],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "KEDGE_TOOLCHAINS": str(root)},
    )


def test_the_commands_say_what_is_missing(tmp_path: Path) -> None:
    listed = json.loads(_kedge("toolchain", "list", "--json", root=tmp_path).stdout)["toolchains"]
    commands = {x["name"]: x["command"] for x in listed}
    assert commands["qnn"] == "kedge toolchain install qnn --accept-licence"
    parts = json.loads(_kedge("doctor", "--json", root=tmp_path).stdout)["parts"]
    assert {x["name"]: x["install"] for x in parts if x["kind"] == "toolchain"} == commands
    refused = _kedge("toolchain", "install", "qnn", root=tmp_path)
    assert refused.returncode == 2
    assert "Qualcomm AI Stack licence" in refused.stderr
    assert "--accept-licence" in refused.stderr.splitlines()[-1]
    unknown = _kedge("toolchain", "install", "--accept-licence", "nope", root=tmp_path)
    assert (unknown.returncode, len(unknown.stderr.splitlines())) == (2, 1)
    removed = _kedge("toolchain", "remove", "qnn", "--json", root=tmp_path)
    assert json.loads(removed.stdout) == {"removed": []}


@pytest.mark.parametrize("name", ["openvino-2022", "qnn"])
def test_what_is_installed_here_works(name: str, tmp_path: Path) -> None:
    environment = needs(name)
    answer = environment.call(f"{name.replace('-', '_')}_health", {}, scratch=tmp_path, limits=LIMITS)
    assert answer["versions"] == environment.versions
