"""Every target's profile: it loads, it is whole, and it says where its facts come from."""

from __future__ import annotations

import importlib.resources

import pytest
from packaging.specifiers import SpecifierSet

from compiler import backends
from compiler.errors import NoBackendError
from firmware_profiles import registry
from firmware_profiles.errors import ProfileError, UnknownTargetError
from firmware_profiles.profile import Support
from toolchains_here import needs

MISSION = [
    "apple-ane",
    "apple-ane-m4",
    "coral-edgetpu",
    "intel-npu",
    "jetson-agx-orin",
    "jetson-orin",
    "jetson-orin-nano",
    "jetson-thor",
    "laptop-arm64",
    "laptop-x86",
    "movidius-myriadx",
    "qcs6490",
    "raspberry-pi5",
    "ryzen-ai",
    "sa8295",
    "snapdragon-8elite",
    "snapdragon-8gen2",
    "snapdragon-8gen3",
    "snapdragon-x-elite",
]


def text_of(name: str) -> bytes:
    folder = importlib.resources.files("firmware_profiles").joinpath("targets")
    return folder.joinpath(f"{name}.toml").read_bytes()


def test_all_targets_of_the_mission_are_there() -> None:
    assert set(MISSION) <= set(registry.names())


@pytest.mark.parametrize("name", registry.names())
def test_the_profile_is_whole(name: str) -> None:
    profile = registry.load(name)
    assert profile.name == name
    assert profile.precisions
    assert all(profile.sources)
    assert profile.firmware
    for firmware in profile.firmware:
        assert SpecifierSet(firmware.versions)
        assert firmware.source
    for rule in profile.operators:
        assert rule.operators
        assert rule.source
        assert (rule.support is Support.LIMITED) == bool(rule.condition)
    assert not (profile.budget.memory_mib or profile.budget.power_mw) or profile.budget.source


def test_an_unknown_key_is_refused_with_file_and_key() -> None:
    """A misspelt key would silently mean its default."""
    bad = text_of("laptop-x86").replace(b"activations =", b"activation =")
    with pytest.raises(ProfileError, match=r"laptop-x86\.toml.*`activation`.*quantization"):
        registry.parse(bad, "laptop-x86.toml")


def test_a_missing_key_is_refused_with_file_and_key() -> None:
    bad = text_of("laptop-x86").replace(b"runtime =", b"# runtime =")
    with pytest.raises(ProfileError, match=r"laptop-x86\.toml.*`runtime`"):
        registry.parse(bad, "laptop-x86.toml")


def test_a_file_under_another_name_is_refused() -> None:
    with pytest.raises(ProfileError, match="expected 'other'"):
        registry.parse(text_of("laptop-x86"), "other.toml")


def test_an_unknown_target_lists_the_known_and_the_nearest() -> None:
    with pytest.raises(UnknownTargetError) as error:
        registry.load("laptop-x68")
    assert "did you mean 'laptop-x86'" in str(error.value)
    assert "coral-edgetpu" in str(error.value)


@pytest.mark.parametrize("name", registry.names())
def test_every_target_has_a_backend_or_says_which_it_waits_for(name: str) -> None:
    profile = registry.load(name)
    if profile.backends[0] in backends.names():
        backend = backends.load(profile.backends[0])
        for toolchain in backend.toolchains:
            needs(toolchain)
        assert backend.versions()
        return
    with pytest.raises(NoBackendError) as error:
        backends.require(profile)
    assert profile.backends[0] in str(error.value)
    assert "laptop-x86" in str(error.value)
