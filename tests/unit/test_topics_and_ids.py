"""Topics and names: nothing that could widen a broker's ACL gets in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.errors import WireError
from fleet.ids import DeviceId, Digest, Name
from fleet.wire import topics

device_ids = st.from_regex(r"[a-z0-9][a-z0-9-]{0,62}", fullmatch=True).map(DeviceId)


@pytest.mark.parametrize("bad", ["", "#", "+", "a/b", "A", "a b", "-a", "a" * 64, "é", "a\n", "a#", "a_b"])
def test_a_device_id_that_could_enter_a_pattern_is_refused(bad: str) -> None:
    with pytest.raises(WireError, match="expected"):
        DeviceId(bad)


@pytest.mark.parametrize("bad", ["", "A", "../x", "a/b", ".hidden", "a" * 64])
def test_a_name_that_could_be_a_path_is_refused(bad: str) -> None:
    with pytest.raises(WireError, match="expected"):
        Name(bad)


@pytest.mark.parametrize(
    "bad", ["", "sha256:", "sha256:" + "A" * 64, "md5:" + "a" * 64, "a" * 64, "sha256:../x"]
)
def test_a_digest_of_another_form_is_refused(bad: str) -> None:
    with pytest.raises(WireError, match="expected"):
        Digest(bad)


def test_a_digest_is_the_bytes_sha256() -> None:
    assert Digest.of(b"").hex == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@given(device_ids, st.sampled_from(topics.UPLINK))
def test_an_uplink_topic_reads_back(device: DeviceId, kind: str) -> None:
    topic = getattr(topics, kind)(device)
    assert topics.parse_uplink(topic) == topics.Uplink(device, kind)
    assert topics.may_publish(device, topic)


@given(device_ids, device_ids, st.sampled_from(topics.UPLINK))
def test_a_device_may_not_publish_as_another(device: DeviceId, other: DeviceId, kind: str) -> None:
    assert topics.may_publish(device, getattr(topics, kind)(other)) == (device == other)


@given(device_ids)
def test_a_device_reads_its_own_topics_chunks_and_metadata_only(device: DeviceId) -> None:
    assert topics.may_subscribe(device, topics.assignment(device))
    assert topics.may_subscribe(device, topics.chunk(Digest.of(b"x")))
    assert topics.may_subscribe(device, topics.trust("timestamp.json"))
    for forbidden in (
        "#",
        "kedge/v1/#",
        "kedge/v1/device/+/command",
        f"{topics.DEVICE}/{device}/+",
        "$SYS/#",
    ):
        assert not topics.may_subscribe(device, forbidden)
    assert not topics.may_subscribe(device, topics.report(device))
    assert not topics.may_publish(device, topics.assignment(device))
    assert not topics.may_publish(device, topics.chunk(Digest.of(b"x")))
    assert not topics.may_publish(device, topics.trust("timestamp.json"))


@given(st.text(max_size=80))
def test_a_strange_topic_is_a_wire_error(topic: str) -> None:
    with pytest.raises(WireError):
        topics.parse_uplink(topic)


@pytest.mark.parametrize("bad", ["", "a/b", "#", "+.json", "a\0"])
def test_a_metadata_name_that_is_no_file_name_is_refused(bad: str) -> None:
    with pytest.raises(WireError):
        topics.trust(bad)


def test_an_unknown_kind_has_no_filter() -> None:
    assert topics.uplink_filter("report") == "kedge/v1/device/+/report"
    with pytest.raises(WireError, match="uplink kind"):
        topics.uplink_filter("command")
