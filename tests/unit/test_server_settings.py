"""What `kedge serve` makes of its options before it opens anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.errors import SettingsError
from server.settings import Settings, in_url

DATA = Path("nowhere")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "[::]", ""])
def test_every_address_is_none_that_a_device_could_be_told(host: str) -> None:
    with pytest.raises(SettingsError, match="--advertise"):
        Settings(data=DATA, host=host).check()
    Settings(data=DATA, host=host, broker="mqtts://broker.example").check()
    named = Settings(data=DATA, host=host, advertise="hub.example")
    named.check()
    assert named.reached_as == "hub.example"
    assert named.nearest == ("::1" if ":" in host else "127.0.0.1")


@pytest.mark.parametrize("host", ["hub.example", "10.1.2.3", "2001:db8::7", "[2001:db8::7]", "hub"])
def test_a_name_or_an_address_may_be_told(host: str) -> None:
    Settings(data=DATA, advertise=host).check()
    assert in_url(host).strip("[]") == host.strip("[]")
    assert in_url(host).startswith("[") == (":" in host)


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "mqtt://hub", "hub:1883", "a b", "hub/", "-hub", "user@hub", "hub\n"]
)
def test_what_is_no_host_is_refused(host: str) -> None:
    with pytest.raises(SettingsError, match="advertise: expected a name or an address"):
        Settings(data=DATA, advertise=host).check()


def test_without_it_devices_are_told_the_host() -> None:
    settings = Settings(data=DATA, host="10.1.2.3")
    settings.check()
    assert (settings.reached_as, settings.nearest) == ("10.1.2.3", "10.1.2.3")
