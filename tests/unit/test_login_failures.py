"""Guessing passwords: many at once, with an account of one's own, to lock others out, and to fill memory."""

from __future__ import annotations

import pytest

from server.errors import TooManyError
from server.services.people.login_failures import (
    LOGIN_FAILURES,
    LOGIN_FAILURES_IN_ALL,
    LOGIN_WINDOW,
    LoginFailures,
)


def _tries(
    failures: LoginFailures, address: str, name: str, now: float = 0.0, number: int = LOGIN_FAILURES
) -> None:
    for _ in range(number):
        failures.attempt(address, name, now)


def _guess_from_everywhere(failures: LoginFailures, name: str) -> None:
    for number in range(LOGIN_FAILURES_IN_ALL):
        failures.attempt(f"10.0.0.{number}", name, 0.0)


def test_many_guesses_at_once_are_no_more_than_one_by_one() -> None:
    """A guesser sends forty requests at the same moment: each counts before it is looked at."""
    failures = LoginFailures()
    _tries(failures, "there", "admin")
    with pytest.raises(TooManyError, match="try again in 301 s"):
        failures.attempt("there", "admin", 0.0)
    failures.attempt("there", "admin", LOGIN_WINDOW + 1.0)


def test_a_guesser_locks_nobody_else_out() -> None:
    """Mallory fails to log in as admin for fun: the admin, at another address, does not notice."""
    failures = LoginFailures()
    _tries(failures, "his", "admin")
    failures.attempt("the admin's", "admin", 0.0)


def test_guesses_at_one_name_from_many_addresses_are_slowed_down() -> None:
    failures = LoginFailures()
    _guess_from_everywhere(failures, "admin")
    with pytest.raises(TooManyError):
        failures.attempt("one more", "admin", 0.0)
    failures.attempt("one more", "anna", 0.0)


def test_who_has_logged_in_from_an_address_is_not_locked_out_there() -> None:
    """Many machines guess at the admin's name: she logs in where she always does; guesses there count."""
    failures = LoginFailures()
    failures.attempt("192.0.2.7", "admin", 0.0)
    failures.succeeded("192.0.2.7", "admin")
    _guess_from_everywhere(failures, "admin")
    _tries(failures, "192.0.2.7", "admin")
    with pytest.raises(TooManyError):
        failures.attempt("192.0.2.7", "admin", 0.0)


def test_a_guesser_with_an_account_does_not_win_guesses_by_it() -> None:
    """Mallory tries one password with every name, and logs in as himself between: his address counts."""
    failures = LoginFailures()
    for number in range(LOGIN_FAILURES_IN_ALL):
        failures.attempt("his", f"person{number}", 0.0)
        if number < LOGIN_FAILURES_IN_ALL - 1:
            failures.attempt("his", "mallory", 0.0)
            failures.succeeded("his", "mallory")
    with pytest.raises(TooManyError):
        failures.attempt("his", "one more", 0.0)


def test_addresses_of_one_ipv6_network_are_one() -> None:
    """Whoever is given one address of version 6 is given 2**64 of them."""
    failures = LoginFailures()
    for number in range(LOGIN_FAILURES):
        failures.attempt(f"2001:db8::{number:x}", "admin", 0.0)
    with pytest.raises(TooManyError):
        failures.attempt("2001:db8::ffff:1", "admin", 0.0)
    failures.attempt("2001:db8:0:1::1", "admin", 0.0)


def test_addresses_of_version_4_are_apart_whatever_socket_they_come_by() -> None:
    failures = LoginFailures()
    _tries(failures, "::ffff:192.0.2.7", "admin")
    failures.attempt("::ffff:192.0.2.8", "admin", 0.0)
    with pytest.raises(TooManyError):
        failures.attempt("192.0.2.7", "admin", 0.0)


def test_who_remembers_the_password_in_the_end_may_go_on() -> None:
    failures = LoginFailures()
    _tries(failures, "home", "anna")
    failures.succeeded("home", "anna")
    failures.attempt("home", "anna", 0.0)


def test_an_attempt_that_nobody_looked_at_does_not_count() -> None:
    failures = LoginFailures()
    for _ in range(LOGIN_FAILURES + 1):
        failures.attempt("home", "anna", 0.0)
        failures.take_back("home", "anna")


def test_names_that_nobody_has_fill_no_memory() -> None:
    """Names without end come from many addresses: what is too old is forgotten with the next try."""
    failures = LoginFailures()
    for number in range(500):
        failures.attempt(f"address {number}", "x" * number, 0.0)
    failures.attempt("one more", "admin", LOGIN_WINDOW + 1.0)
    assert len(failures) == 3
