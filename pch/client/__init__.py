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
    TokenFailed,
    TooManyRedirects,
    Unsupported,
)
from pch.client.response import Headers, Response
from pch.client.signers import KeyTypes
from pch.client.sync_client import Client
from pch.client.upload import Upload

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
    "KeyTypes",
    "NetworkError",
    "PeerFault",
    "PoolExhausted",
    "Response",
    "ResponseTooLarge",
    "TimedOut",
    "TokenFailed",
    "TooManyRedirects",
    "Unsupported",
    "Upload",
]
