"""The power is cut at every durable operation while a device takes new trust metadata and an assignment."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from device_agent.adapters.trust_client import TrustClient
from fake_link import FakeBroker
from memory_folder import memory_folder
from power_cuts import cut_everywhere
from trust_world import DAY, START, TARGET, ManualClock, World

DEVICE: Final = "d1"


class Files:
    """Implements `device_agent.ports.MetadataFetcher` on files that were read before."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files

    def fetch(self, name: str, limit: int) -> bytes | None:
        data = self.files.get(name)
        assert data is None or len(data) <= limit
        return data


def test_a_power_cut_while_metadata_is_taken_leaves_a_device_that_trusts_no_less_and_no_more(
    tmp_path: Path,
) -> None:
    """The owner has replaced a stolen timestamp key, root and all, and released; the light goes out.

    Root, the forgetting of what the thief signed, timestamp, time floor, snapshot, targets, the project's
    file and the assignment's version are each written, renamed, synced or removed: right before every single
    call the process ends. Then the device starts again and follows the same assignment, and an older one is
    refused as before.
    """
    world = World(tmp_path, FakeBroker())
    first = world.server.release("1")
    before = world.server.assignment(DEVICE, [first], version=1)
    template = tmp_path / "template"
    clock = ManualClock(START)
    client = TrustClient(template, Files(world.server.signing.files()), DEVICE, TARGET)
    client.bootstrap(world.server.signing.first_root())
    client.accept(before, {}, clock.wall())
    world.clock.seconds = clock.seconds = START + DAY
    world.server.signing.rotate("timestamp")
    second = world.server.release("2", counter=2, seed=2)
    after = world.server.assignment(DEVICE, [second], version=2)
    now, wall = Files(world.server.signing.files()), clock.wall()

    def take(root: Path) -> None:
        TrustClient(root, now, DEVICE, TARGET).accept(after, {}, wall)

    def come_back(root: Path) -> None:
        again = TrustClient(root, now, DEVICE, TARGET)
        assert again.assignment_version in (1, 2)
        assert again.accept(after, {}, wall).version == 2
        assert again.assignment_version == 2
        assert again.clock(ManualClock(0.0).wall()).untrusted
        assert {x.suffix for x in root.iterdir()} <= {".json", ""}, "nothing half written is left"

    with memory_folder(tmp_path) as folder:
        found = cut_everywhere(folder, template, take, come_back)
    assert found.calls > 30, "the cuts are where the trusted state touches the disk"
    assert found.failures == []
