"""Where people prove who they are, if not here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One sign-in of one browser: three secrets that nobody else knows.

    Attributes:
        state: comes back in the address, so that an answer belongs to a question.
        nonce: comes back in the identity token, so that the token belongs to this sign-in.
        verifier: of PKCE (RFC 7636), so that a stolen code is of no use.
    """

    state: str
    nonce: str
    verifier: str


class IdentityProvider(Protocol):
    """An OpenID provider, as this server is known to it."""

    @property
    def issuer(self) -> str:
        """Its address, which is its name."""

    def address(self, attempt: Attempt) -> str:
        """Return where the browser goes to prove who is there.

        Raises:
            ProviderError: the provider does not answer, or not as one.
        """

    def redeem(self, code: str, attempt: Attempt) -> Mapping[str, object]:
        """Return the claims of the person whom the provider vouches for.

        Args:
            code: what the browser brought back.
            attempt: what it was sent with.

        Raises:
            ProviderError: the provider does not answer, or not as one.
            UnauthenticatedError: it does not vouch for anybody, or what it says does not verify.
        """

    def farewell(self) -> str:
        """Return where a person ends their session at the provider, "" where that is not possible.

        Raises:
            ProviderError: the provider does not answer, or not as one.
        """
