"""What the distribution promises: names, weight, and a wheel that works in a clean environment."""

from __future__ import annotations

import email
import subprocess
import sys
import venv
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OURS = ("kedge", "server", "device_agent", "compiler", "fleet", "firmware_profiles")
#: What a device never has: the agent and its command line must come up without them.
HEAVY = (
    "litestar", "sqlmodel", "sqlalchemy", "alembic", "amqtt", "onnx", "onnxruntime", "openvino",
    "tflite_runtime", "rich", "jinja2", "mlserver", "sympy", "sklearn",
)  # fmt: skip
BLOCKED = f"import sys\nfor name in {HEAVY!r}: sys.modules[name] = None\n"


@pytest.mark.parametrize("package", OURS)
def test_no_other_distribution_claims_our_names(package: str) -> None:
    assert set(packages_distributions().get(package, ["kedge"])) == {"kedge"}


@pytest.mark.parametrize("arguments", [["--help"], ["agent", "--help"], ["agent", "run", "--help"]])
def test_the_command_line_comes_up_without_the_extras(arguments: list[str]) -> None:
    """A device has the base install only: `kedge` and `kedge agent` load none of the heavy libraries."""
    code = (
        f"{BLOCKED}sys.argv = ['kedge', *{arguments!r}]\n"
        "import atexit\n"
        "from kedge.cli import main\n"
        "atexit.register(lambda: print('LOADED', sorted(m for m in sys.modules "
        "if m.split('.')[0] in ('server', 'compiler'))))\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "Usage:" in done.stdout
    assert "LOADED []" in done.stdout


def test_who_signs_offline_needs_no_extra_but_that_of_a_token(tmp_path: Path) -> None:
    """A notebook without a network has the base install: key files work, a token names what it needs."""
    uri = "pkcs11:token=a;object=b?module-path=/nowhere.so"
    for arguments, code, said in (
        (["--unencrypted"], 0, ""),
        (
            ["--token", uri],
            2,
            "error: a key in hardware needs the 'pkcs11' extra: pip install 'kedge[pkcs11]'",
        ),
    ):
        command = ["kedge", "keys", "generate", "alice", "--out", str(tmp_path), *arguments]
        program = (
            f"{BLOCKED}sys.modules['PyKCS11'] = None\n"
            f"sys.argv = {command!r}\nfrom kedge.cli import main\nmain()\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", program], check=False, capture_output=True, text=True, timeout=60
        )
        assert (done.returncode, done.stderr.strip()) == (code, said)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alice.pem", "alice.pub.json"]


DIGITS = ROOT / "examples" / "digits"
COMPILE = [
    *("compile", str(DIGITS / "device.onnx"), "--target", "laptop-x86", "--out", "OUT"),
    *("--calibration", str(DIGITS / "calibration.npz"), "--evaluation", str(DIGITS / "evaluation.npz")),
]


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [(COMPILE, "compiler"), (["serve", "--data", "DATA"], "server"), (["demo"], "demo")],
)
def test_a_missing_extra_names_its_install_command(arguments: list[str], extra: str, tmp_path: Path) -> None:
    """Somebody installed the agent only and tries the rest: one line says what to install, exit 2."""
    code = f"{BLOCKED}sys.argv = ['kedge', *{arguments!r}]\nfrom kedge.cli import main\nmain()\n"
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 2, done.stderr
    assert f"pip install 'kedge[{extra}]'" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        check=True, cwd=ROOT, capture_output=True,
    )  # fmt: skip
    return next(folder.glob("kedge-*.whl"))


def test_the_wheel_holds_our_packages_their_data_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {n.split("/")[0] for n in names if ".dist-info/" not in n} == set(OURS)
    assert any(n.startswith("firmware_profiles/targets/") and n.endswith(".toml") for n in names)
    assert any(n.startswith("server/console/static/vendor/") for n in names)
    assert any(n.startswith("server/console/templates/") for n in names)
    assert any("migrations/versions/" in n for n in names)


def test_the_base_install_is_the_agents(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    metadata = email.message_from_bytes(
        archive.read(next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA")))
    )
    base = {
        line.split(";")[0].split(">")[0].split("[")[0].split("<")[0].strip()
        for line in metadata.get_all("Requires-Dist") or []
        if "extra ==" not in line
    }
    assert base.isdisjoint(HEAVY), base


def test_the_wheel_works_in_a_clean_environment(wheel: Path, tmp_path: Path) -> None:
    """A new machine installs the wheel: the command is there, and finds its profiles outside the checkout."""
    venv.create(tmp_path / "env", with_pip=False, symlinks=True)
    python = tmp_path / "env" / "bin" / "python"
    # The dependencies are those of this environment, by path: this tests our wheel, not the network.
    site = next((tmp_path / "env" / "lib").glob("python*/site-packages"))
    (site / "dependencies.pth").write_text(str(Path(pytest.__file__).parents[1]) + "\n")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    done = subprocess.run(
        [python, "-c", "import sys, kedge.cli as c; sys.argv[1:] = ['targets', '--json']; c.main()"],
        check=True, capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert "jetson-orin" in done.stdout
    where = subprocess.run(
        [python, "-c", "import server.console, fleet; print(fleet.__file__, server.console.__file__)"],
        check=True, capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert str(ROOT) not in where.stdout


def test_requirements_carry_hashes_and_no_address() -> None:
    for path in (ROOT / "requirements").glob("*.txt"):
        text = path.read_text()
        assert "://" not in text, path
        assert "--index-url" not in text, path
        if path.name != "constraints.txt":
            assert "--hash=sha256:" in text, path
