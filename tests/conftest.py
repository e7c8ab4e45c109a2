"""Settings for every test."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent
SHARED_MODELS = ROOT.parent / "shared" / "models"

# A shared machine pauses at will: the time limit of a test is pytest-timeout's, not each example's. In CI the
# examples are the same every time, so that a red run can be repeated.
settings.register_profile("kedge", deadline=None, derandomize=bool(os.environ.get("CI")), print_blob=True)
settings.load_profile("kedge")

# OpenVINO sends usage data as soon as it is imported: the product bars that, and so do tests that import it.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None bars the import


@pytest.fixture(scope="session")
def shared_models() -> Path:
    """The folder of real models beside the project; tests that need it are skipped where it is absent."""
    if not SHARED_MODELS.is_dir():
        pytest.skip("the folder of shared test models is absent: ../shared/models")
    return SHARED_MODELS


def pytest_configure(config: pytest.Config) -> None:
    """Give the tests a cache of compilations of their own: empty at the start, shared by all workers."""
    # pytest-xdist would order the files by how many tests each has.
    config.option.loadscopereorder = False
    if not hasattr(config, "workerinput"):  # a worker inherits it
        folder = tempfile.TemporaryDirectory(prefix="kedge-cache-")
        config.add_cleanup(folder.cleanup)
        os.environ["KEDGE_CACHE"] = folder.name


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run what is quick first, and the browser last: Playwright keeps an event loop in the main thread."""
    order = ("unit", "contract", "system", "browser")
    items.sort(key=lambda item: order.index(item.path.relative_to(ROOT / "tests").parts[0]))
