"""What `kedge kit` and `kedge broker config --site` say to somebody who asks for the wrong thing."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from fleet.wire import topics
from server.adapters.clock import SystemClock
from server.cli import broker, kit
from server.errors import InvalidError, SettingsError
from server.services.broker import site_config
from server.services.identity.authority import FleetAuthority


def test_a_kit_for_nobody_in_particular_is_not_written(tmp_path: Path) -> None:
    """A typing mistake must not carry the whole fleet's models away on a stick."""
    done = CliRunner().invoke(kit, ["export", str(tmp_path / "stick"), "--server", "x", "--token", "y"])
    assert done.exit_code == 2
    assert "for which devices?" in done.output
    assert not (tmp_path / "stick").exists()


@pytest.mark.parametrize(
    "more",
    [
        ["--site", "plant-7"],
        ["--site", "plant-7", "--uplink", "mqtts://broker.example"],
        ["--uplink", "mqtts://broker.example", "--device", "d1"],
    ],
)
def test_a_site_takes_all_of_its_options_or_none(tmp_path: Path, more: list[str]) -> None:
    where = ["--data", str(tmp_path / "data"), "--out", str(tmp_path / "out")]
    with pytest.raises(click.UsageError, match="a site takes"):
        CliRunner().invoke(broker, ["config", *where, *more], standalone_mode=False, catch_exceptions=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "devices", "gateways", "said"),
    [
        ("plant 7", ("d1",), (), "plant 7"),
        ("plant-7", (), (), "at least one device"),
        ("plant-7", ("d1", "#"), (), "device id"),
        ("plant-7", ("d1",), ("+",), "device id"),
    ],
)
def test_no_name_of_a_site_can_mean_something_in_an_acl(
    name: str, devices: tuple[str, ...], gateways: tuple[str, ...], said: str
) -> None:
    with pytest.raises(InvalidError, match=said):
        site_config.checked(name, devices, gateways)


@pytest.mark.parametrize(
    "uplink", ["broker.example", "mqtt://broker.example", "mqtts://", "mqtts://a b", "mqtts://a:x"]
)
def test_a_wrong_uplink_is_named(tmp_path: Path, uplink: str) -> None:
    clock = SystemClock()
    authority = FleetAuthority(tmp_path / "keys", clock)
    site = site_config.checked("plant-7", ["d1"], [])
    with pytest.raises(InvalidError, match="uplink"):
        site_config.write(
            tmp_path / "out", authority, clock, site, sites=tmp_path / "sites", uplink=uplink, port=8883
        )


def test_a_bridge_may_do_for_its_devices_what_they_may_do_and_nothing_else() -> None:
    """The lines of the fleet's broker's ACL are those of `fleet.wire.topics`, device by device."""
    lines = site_config.bridge_rules([site_config.checked("plant-7", ["d1", "d2"], ["d1"])])
    written = {line.removeprefix("topic write ") for line in lines if line.startswith("topic write")}
    read = {line.removeprefix("topic read ") for line in lines if line.startswith("topic read")}
    assert "user site.plant-7" in lines
    assert written == {f"{topics.DEVICE}/{x}/{kind}" for x in ("d1", "d2") for kind in topics.UPLINK}
    own = {f"{topics.DEVICE}/{x}/{kind}" for x in ("d1", "d2") for kind in topics.DOWNLINK}
    assert read == {*own, f"{topics.TRUST}/+"}


def test_a_bridge_has_a_name_that_no_device_can_have(tmp_path: Path) -> None:
    with pytest.raises(InvalidError, match="dot"):
        FleetAuthority(tmp_path, SystemClock()).issue_bridge("d1")


def test_a_damaged_site_is_named(tmp_path: Path) -> None:
    (tmp_path / "plant-7.json").write_text("{")
    with pytest.raises(SettingsError, match=r"plant-7\.json"):
        site_config.known(tmp_path)
    assert site_config.known(tmp_path / "none") == []
