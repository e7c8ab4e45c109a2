"""The power goes at every call that changes the disk while a certificate is replaced, or a device wiped."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Final

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from device_agent.adapters import credentials, device_key, files, wipe
from device_agent.adapters.state import Identity, StateFolder
from fleet.ids import DeviceId
from fleet.wire.enrolment import BrokerAccess
from server.services.identity.authority import FleetAuthority
from sim_devices import TARGET, csr
from trust_world import ManualClock

_CALLS: Final = (os.open, os.fsync, os.replace, os.rename, os.unlink, os.rmdir, os.mkdir)


class PowerCut(BaseException):
    """Nothing handles it, as nothing handles a power cut."""


def cut_at(number: int, work: Callable[[], None]) -> bool:
    """Do some work, and cut the power right before its n-th change of the disk; return whether it was cut."""
    left = number

    def profile(_frame: FrameType, event: str, call: object) -> None:
        nonlocal left
        owner, name = getattr(call, "__self__", None), getattr(call, "__name__", "")
        written = isinstance(owner, io.IOBase) and name == "write"
        if event == "c_call" and (call in _CALLS or written):
            left -= 1
            if left == 0:
                sys.setprofile(None)
                raise PowerCut

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        work()
    except PowerCut:
        return True
    finally:
        sys.setprofile(before)
    return False


def cuts(prepare: Callable[[Path], Callable[[], None]], folder: Path) -> Iterator[Path]:
    """Yield the folder after each cut, until the work comes through uncut."""
    for number in range(1, 200):
        place = folder / str(number)
        place.mkdir()
        if not cut_at(number, prepare(place)):
            assert number > 4, "nothing was cut"
            return
        yield place
    pytest.fail("it never came through")


def enrolled(folder: Path, authority: FleetAuthority) -> StateFolder:
    """Return a device's folder as enrolment leaves it."""
    state = StateFolder(folder)
    device_key.ensure(state.key)
    tls = credentials.next_key(state)
    credentials.keep(state, tls, authority.sign_device(csr(tls), DeviceId("d1")))
    files.write(state.ca, authority.ca_pem)
    state.save_identity(
        Identity(device_id="d1", server="http://x", target=TARGET, broker=BrokerAccess(url="mqtts://x"))
    )
    return state


def fits(state: StateFolder) -> ec.EllipticCurvePublicKey:
    """Return the connection's key, after checking that its certificate is for it."""
    key = device_key.load(state.tls).public_key()
    assert credentials.present(state).public_key() == key
    return key


def test_the_connection_has_the_old_pair_or_the_new_one(tmp_path: Path) -> None:
    """A renewal is cut off: what lies there fits together, and the next renewal goes on."""
    authority = FleetAuthority(tmp_path / "ca", ManualClock())
    (tmp_path / "device").mkdir()

    def prepare(place: Path) -> Callable[[], None]:
        state = enrolled(place, authority)

        def renew() -> None:
            tls = credentials.next_key(state)
            made = authority.sign_device(csr(tls), DeviceId("d1"))
            files.write(state.ca, authority.ca_pem)
            credentials.keep(state, tls, made)

        return renew

    seen = set()
    for place in cuts(prepare, tmp_path / "device"):
        state = StateFolder(place)
        before = fits(state)
        seen.add(before.public_numbers().x)
        x509.load_pem_x509_certificate(state.ca.read_bytes())
        tls = credentials.next_key(state)
        credentials.keep(state, tls, authority.sign_device(csr(tls), DeviceId("d1")))
        assert fits(state) == tls.public_key()
    assert len(seen) > 1


def test_a_wiped_device_is_wiped_whole_or_not_at_all(tmp_path: Path) -> None:
    """The order to wipe is cut off: before its mark nothing is gone; after it, the next start goes on."""
    authority = FleetAuthority(tmp_path / "ca", ManualClock())
    (tmp_path / "device").mkdir()

    def prepare(place: Path) -> Callable[[], None]:
        state = enrolled(place, authority)
        for name in ("journal/digits.json", "blobs/sha256/ab", "trust/root.json"):
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_text("something")
        return lambda: wipe.wipe(state)

    marked = 0
    for place in cuts(prepare, tmp_path / "device"):
        state = StateFolder(place)
        if not state.decommissioned:
            fits(state)
            assert state.identity().device_id == "d1"
            continue
        marked += 1
        wipe.wipe(state)
        assert [x.name for x in place.iterdir()] == ["decommissioned"]
    assert marked > 5
