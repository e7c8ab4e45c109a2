"""Guessing passwords: many at once, with an account of one's own, and to fill the server's memory."""

from __future__ import annotations

import pytest

from server.errors import TooManyError
from server.services.people.login_failures import LOGIN_FAILURES, LOGIN_WINDOW, LoginFailures


def _tries(
    failures: LoginFailures, address: str, name: str, now: float = 0.0, number: int = LOGIN_FAILURES
) -> None:
    for _ in range(number):
        failures.attempt(address, name, now)


def test_many_guesses_at_once_are_no_more_than_one_by_one() -> None:
    """A guesser sends forty requests at the same moment: each counts before it is looked at."""
    failures = LoginFailures()
    _tries(failures, "there", "admin")
    with pytest.raises(TooManyError, match="try again in 301 s"):
        failures.attempt("elsewhere", "admin", 0.0)
    failures.attempt("elsewhere", "admin", LOGIN_WINDOW + 1.0)


def test_a_guesser_with_an_account_does_not_win_guesses_by_it() -> None:
    """Mallory tries one password with every name, and logs in as himself between: his address counts."""
    failures = LoginFailures()
    for number in range(LOGIN_FAILURES):
        failures.attempt("his", f"person{number}", 0.0)
        if number < LOGIN_FAILURES - 1:
            failures.attempt("his", "mallory", 0.0)
            failures.succeeded("his", "mallory")
    with pytest.raises(TooManyError):
        failures.attempt("his", "one more", 0.0)


def test_who_remembers_the_password_in_the_end_may_go_on() -> None:
    failures = LoginFailures()
    _tries(failures, "home", "anna")
    failures.succeeded("home", "anna")
    failures.attempt("work", "anna", 0.0)


def test_names_that_nobody_has_fill_no_memory() -> None:
    """Names without end come from many addresses: what is too old is forgotten with the next try."""
    failures = LoginFailures()
    for number in range(500):
        failures.attempt(f"address {number}", "x" * number, 0.0)
    failures.attempt("one more", "admin", LOGIN_WINDOW + 1.0)
    assert len(failures) == 2
