"""Every bound of the client, with its unit. Nothing here waits, grows or is read without one of these."""

from __future__ import annotations

from typing import Final

DEFAULT_TIMEOUT_S: Final = 30.0
"""The whole of one request: connecting, waiting for a connection, every retry, and reading the answer."""
IDLE_EXPIRY_S: Final = 30.0
"""An idle connection older than this is closed instead of used."""
CLOSE_TIMEOUT_S: Final = 1.0
"""How long closing may wait for the peer to take the closing alert."""

MAX_CONNECTIONS_PER_ORIGIN: Final = 8
MAX_STREAMS_PER_CONNECTION: Final = 8
"""Requests in flight on one HTTP/2 connection. A verifier hands out at most 8 challenges at once (PCH §5)."""
MAX_ENVELOPES_AHEAD: Final = 4
"""Envelopes of one connection that wait for their request (PCH §6)."""
MAX_ORIGINS: Final = 64
MAX_WAITING_REQUESTS: Final = 1024
"""Requests that may wait for a connection, per client."""

MAX_CHALLENGES_PER_CONNECTION: Final = 8
DEFAULT_MAX_AGE_S: Final = 60
"""Used until a challenge tells the verifier's own max-age."""
MAX_MAX_AGE_S: Final = 3600
"""The longest max-age that is believed."""
SIGNATURE_LIFETIME_S: Final = 30
"""`expires` lies this far after `created`, or max-age if that is less (PCH §3)."""

MAX_SIGNED_RETRIES: Final = 1
"""A refused signed request is signed again this often (PCH §5: once per request)."""
MAX_RELAX_ROUNDS: Final = 2
"""How often one request is relaxed because it was over the header budget: once more if it had to be signed again."""
MAX_PROBES: Final = 3
"""How often one request with content asks for a challenge by HEAD: once on each connection that it comes to."""
MAX_UNSIGNED_SENDS: Final = 2
"""How often one request asks for a challenge by going out unsigned."""
MAX_LOST_CONNECTIONS: Final = 3
"""How often one request moves to another connection because its own was gone before sending."""
MAX_REDIRECTS: Final = 10

MAX_URL_CHARS: Final = 8192
MAX_REQUEST_HEADERS: Final = 128
MAX_REQUEST_HEADER_BYTES: Final = 49_152
"""The hard cap of PCH §6 on the sum over fields of name + value + 4."""
MAX_REQUEST_BODY_BYTES: Final = 64 * 1024 * 1024
"""Content that is given as bytes. What is larger is an `Upload`, which is never in memory whole."""
MAX_UPLOAD_BYTES: Final = 17_179_869_184
UPLOAD_PIECE_BYTES: Final = 262_144
"""Read from a file at a time."""
MAX_RESPONSE_BODY_BYTES: Final = 64 * 1024 * 1024
MAX_RESPONSE_HEADERS: Final = 256

MAX_CHALLENGE_FIELD_BYTES: Final = 8192
"""WWW-Authenticate and PCH-Challenge, all lines together."""
MAX_AUTH_PARAMS: Final = 32

TLS_READ_BYTES: Final = 65_536
TLS_WRITE_BYTES: Final = 65_536
"""Plain bytes turned into records at a time, so that one write never doubles a large body in memory."""
MAX_BUFFERED_PLAIN_BYTES: Final = 1_048_576
"""Received and not yet read; past it the transport stops reading."""

MAX_KEY_FILE_BYTES: Final = 65_536
MAX_FIELD_FILE_BYTES: Final = 262_144
