"""A client that signs every request for the connection it is sent on (docs/reference/pch.md)."""

from pch.client.async_client import AsyncClient
from pch.client.errors import (
    BindingUnavailable,
    CertificateRefused,
    ChallengeSyntaxError,
    ChallengeUnusable,
    ClientError,
    ConnectFailed,
    ConnectionLost,
    HttpStatusError,
    InvalidRequest,
    NetworkError,
    PeerFault,
    PoolExhausted,
    ResponseTooLarge,
    TimedOut,
    TooManyRedirects,
)
from pch.client.response import Headers, Response
from pch.client.sync_client import Client

__all__ = [
    "AsyncClient",
    "BindingUnavailable",
    "CertificateRefused",
    "ChallengeSyntaxError",
    "ChallengeUnusable",
    "Client",
    "ClientError",
    "ConnectFailed",
    "ConnectionLost",
    "Headers",
    "HttpStatusError",
    "InvalidRequest",
    "NetworkError",
    "PeerFault",
    "PoolExhausted",
    "Response",
    "ResponseTooLarge",
    "TimedOut",
    "TooManyRedirects",
]
