"""What can go wrong for a client, by whose fault it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pch.client.response import Response


class ClientError(Exception):
    """Anything that ends a request without an answer to give."""


class InvalidRequest(ClientError, ValueError):
    """The caller asked for something that cannot be sent (our side's fault)."""


class Unsupported(InvalidRequest):
    """The key is of a kind, or in a place, that this installation cannot sign with."""


class TokenFailed(ClientError):
    """The token that keeps the key did not sign."""


class NetworkError(ClientError):
    """The server was not reached, or stopped answering."""


class ConnectFailed(NetworkError):
    """No TCP or TLS connection came about."""


class CertificateRefused(ConnectFailed):
    """The server's certificate is not trusted, or is for another name."""


class BindingUnavailable(ConnectFailed):
    """The connection is not TLS 1.3, so it has no channel binding (RFC 9266 §4.2)."""


class ConnectionLost(NetworkError):
    """The connection ended before the whole answer arrived."""


class TimedOut(NetworkError):
    """The request's time was used up."""


class PoolExhausted(NetworkError):
    """Too many requests wait for a connection already."""


class PeerFault(ClientError):
    """The server sent something that HTTP or PCH does not allow."""


class ResponseTooLarge(PeerFault):
    """The answer is larger than this client accepts."""


class TooManyRedirects(PeerFault):
    """A chain of redirects went on past the limit, or led out of TLS."""


class ChallengeSyntaxError(PeerFault):
    """A challenge field does not follow its grammar (PCH §2, §5)."""


class ChallengeUnusable(ClientError):
    """The route asks for something that this client, as configured, does not do.

    `response`: the answer that carried the challenge.
    """

    def __init__(self, message: str, response: Response) -> None:
        super().__init__(message)
        self.response = response


class HttpStatusError(ClientError):
    """The answer's status is 4xx or 5xx; raised only by `Response.raise_for_status`."""

    def __init__(self, message: str, response: Response) -> None:
        super().__init__(message)
        self.response = response
