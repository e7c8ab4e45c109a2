"""The fleet's certificate authority."""

from __future__ import annotations

import stat
from datetime import timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fleet.ids import DeviceId
from mtls import request
from server.commands.broker import broker
from server.errors import ConflictError, InvalidError, SettingsError
from server.services.data_lock import alone
from server.services.identity.authority import CertificateLifetimes, FleetAuthority
from server.services.identity.authority_folder import AuthorityFolder
from trust_world import ManualClock


def common_name(certificate: x509.Certificate) -> list[str]:
    return [str(a.value) for a in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]


def test_a_device_is_called_what_the_server_says(tmp_path: Path) -> None:
    """A request that calls itself `#` or kedge-server becomes a certificate of d1, and of nothing else."""
    clock = ManualClock()
    authority = FleetAuthority(tmp_path, clock)
    ca = x509.load_pem_x509_certificate(authority.ca_pem)
    for subject in ("#", "kedge-server", "x"):
        pem = authority.sign_device(request(subject)[1], DeviceId("d1"))
        certificate = x509.load_pem_x509_certificate(pem.encode())
        certificate.verify_directly_issued_by(ca)
        assert common_name(certificate) == ["d1"]
        assert len(list(certificate.subject)) == 1
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]
        assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        assert certificate.not_valid_after_utc == clock.wall() + timedelta(days=30)


def test_a_restart_keeps_the_authority(tmp_path: Path) -> None:
    first, second = (FleetAuthority(tmp_path, ManualClock()) for _ in range(2))
    assert first.ca_pem == second.ca_pem
    assert stat.S_IMODE((tmp_path / "ca.key.pem").stat().st_mode) == 0o600


@pytest.mark.parametrize("damaged", ["ca.pem", "ca.key.pem"])
def test_a_damaged_authority_is_none(tmp_path: Path, damaged: str) -> None:
    """The key is lost, or a file is spoilt: making a new authority would lock every device out."""
    FleetAuthority(tmp_path, ManualClock())
    (tmp_path / damaged).write_bytes(b"spoilt")
    with pytest.raises(SettingsError, match="backup"):
        FleetAuthority(tmp_path, ManualClock())
    (tmp_path / "ca.key.pem").unlink()
    with pytest.raises(SettingsError, match="backup"):
        FleetAuthority(tmp_path, ManualClock())


def test_a_lost_certificate_is_made_again_from_the_key(tmp_path: Path) -> None:
    """The power was cut between the two files, or somebody deleted one: issued certificates stay good."""
    pem = FleetAuthority(tmp_path, ManualClock()).sign_device(request()[1], DeviceId("d1"))
    (tmp_path / "ca.pem").unlink()
    again = x509.load_pem_x509_certificate(FleetAuthority(tmp_path, ManualClock()).ca_pem)
    x509.load_pem_x509_certificate(pem.encode()).verify_directly_issued_by(again)


def test_two_halves_of_different_authorities_are_none(tmp_path: Path) -> None:
    for name in "ab":
        FleetAuthority(tmp_path / name, ManualClock())
    (tmp_path / "a" / "ca.pem").write_bytes((tmp_path / "b" / "ca.pem").read_bytes())
    with pytest.raises(SettingsError, match="is not the key of"):
        FleetAuthority(tmp_path / "a", ManualClock())


def forged_requests() -> list[str]:
    """Return requests that must not be signed."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "d1")])
    builder = x509.CertificateSigningRequestBuilder().subject_name(name)
    weak = builder.sign(rsa.generate_private_key(65537, 2048), hashes.SHA256())
    other_curve = builder.sign(ec.generate_private_key(ec.SECP384R1()), hashes.SHA256())
    good = x509.load_pem_x509_csr(request()[1].encode()).public_bytes(serialization.Encoding.DER)
    unsigned = x509.load_der_x509_csr(good[:-1] + bytes([good[-1] ^ 1]))
    pem = serialization.Encoding.PEM
    return ["", "x", "x" * 10_000, *(r.public_bytes(pem).decode() for r in (weak, other_curve, unsigned))]


@pytest.mark.parametrize("number", range(6))
def test_a_bad_request_is_refused(tmp_path: Path, number: int) -> None:
    """Nothing, junk, too much, an RSA key, another curve, a request not signed by its own key."""
    authority = FleetAuthority(tmp_path, ManualClock())
    with pytest.raises(InvalidError, match="certificate request"):
        authority.sign_device(forged_requests()[number], DeviceId("d1"))


def test_the_broker_is_reached_by_its_names(tmp_path: Path) -> None:
    authority = FleetAuthority(tmp_path, ManualClock())
    pem = authority.issue_broker(["broker.example", "10.1.2.3", "localhost"]).certificate
    names = x509.load_pem_x509_certificate(pem).extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    assert names.value.get_values_for_type(x509.DNSName) == ["localhost", "broker.example"]
    assert [str(a) for a in names.value.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "10.1.2.3"]


# --- from one authority to the next ---------------------------------------------------------------------


def test_a_new_authority_is_trusted_before_it_signs_and_the_old_one_for_a_while_after(tmp_path: Path) -> None:
    """First everybody learns of the next one, then it signs, then the old one is trusted no more."""
    clock = ManualClock()
    folder = AuthorityFolder(tmp_path, clock)
    first = FleetAuthority(tmp_path, clock)
    folder.add_next()
    both = FleetAuthority(tmp_path, clock)
    assert both.ca_pem.startswith(first.ca_pem)
    assert both.key_id == first.key_id
    folder.switch()
    switched = FleetAuthority(tmp_path, clock)
    assert switched.key_id != first.key_id
    assert sorted(parsed(switched.ca_pem)) == sorted(parsed(both.ca_pem))
    assert len({x.subject for x in x509.load_pem_x509_certificates(switched.ca_pem)}) == 2
    old = x509.load_pem_x509_certificate(first.sign_device(request()[1], DeviceId("d1")).encode())
    assert first.signed(old)
    assert not switched.signed(old)
    folder.drop_old()
    last = FleetAuthority(tmp_path, clock)
    assert len(parsed(last.ca_pem)) == 1
    (link,) = x509.load_pem_x509_certificates(last.links_pem)
    link.verify_directly_issued_by(x509.load_pem_x509_certificate(first.ca_pem))
    assert link.public_key() == x509.load_pem_x509_certificate(last.ca_pem).public_key()


def parsed(pem: bytes) -> list[str]:
    """Return the fingerprints of certificates."""
    return [x.fingerprint(hashes.SHA256()).hex() for x in x509.load_pem_x509_certificates(pem)]


def test_steps_out_of_order_are_refused(tmp_path: Path) -> None:
    folder = AuthorityFolder(tmp_path, ManualClock())
    for step, says in ((folder.switch, "no next one"), (folder.drop_old, "no old one")):
        with pytest.raises(ConflictError, match=says):
            step()
    folder.add_next()
    with pytest.raises(ConflictError, match="under way"):
        folder.add_next()
    folder.switch()
    with pytest.raises(ConflictError, match="under way"):
        folder.add_next()


def test_a_power_cut_leaves_one_authority_or_the_other(tmp_path: Path) -> None:
    """The power goes between the two files of the next authority, then between the two of the switch."""
    clock = ManualClock()
    folder = AuthorityFolder(tmp_path, clock)
    folder.add_next()
    (tmp_path / "ca-next.key.pem").rename(tmp_path / "kept")
    assert FleetAuthority(tmp_path, clock).ca_pem.count(b"BEGIN") == 1
    assert not (tmp_path / "ca-next.pem").exists()
    folder.add_next()
    expected = x509.load_pem_x509_certificate((tmp_path / "ca-next.pem").read_bytes())
    for name in ("ca.key.pem", "ca.pem"):
        (tmp_path / name.replace("ca", "ca-old", 1)).write_bytes((tmp_path / name).read_bytes())
    (tmp_path / "ca-next.key.pem").replace(tmp_path / "ca.key.pem")
    switched = FleetAuthority(tmp_path, clock)
    assert x509.load_pem_x509_certificates(switched.ca_pem)[0] == expected
    assert switched.ca_pem.count(b"BEGIN") == 2


def test_lifetimes_are_a_setting(tmp_path: Path) -> None:
    clock = ManualClock()
    authority = FleetAuthority(tmp_path, clock, CertificateLifetimes(device=timedelta(hours=8)))
    made = x509.load_pem_x509_certificate(authority.sign_device(request()[1], DeviceId("d1")).encode())
    assert made.not_valid_after_utc == clock.wall() + timedelta(hours=8)


def test_the_steps_are_commands(tmp_path: Path) -> None:
    """An administrator goes from one authority to the next by what the documentation says."""
    data = ["--data", str(tmp_path / "data")]
    runner = CliRunner()
    assert isinstance(runner.invoke(broker, ["authority", "add", *data]).exception, SettingsError)
    FleetAuthority(tmp_path / "data" / "keys", ManualClock())
    for step, says in (("add", "authority switch"), ("switch", "authority drop"), ("drop", "broker config")):
        done = runner.invoke(broker, ["authority", step, *data], catch_exceptions=False)
        assert says in done.output


def test_no_step_is_taken_while_the_server_runs(tmp_path: Path) -> None:
    """A server that runs signs with the authority that it has read, also after a switch and a drop."""
    data = ["--data", str(tmp_path / "data")]
    FleetAuthority(tmp_path / "data" / "keys", ManualClock())
    runner = CliRunner()
    with alone(tmp_path / "data"):
        for step in ("add", "switch", "drop"):
            error = runner.invoke(broker, ["authority", step, *data]).exception
            assert isinstance(error, SettingsError)
            assert "a server is running on it" in str(error)
        assert runner.invoke(broker, ["authority", "list", *data]).exit_code == 0
