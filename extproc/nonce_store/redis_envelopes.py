"""The envelopes of the Redis store: one script keeps, another finds.

KEYS of both: 1 the hash of the spent nonces, 2 a hash of the envelopes by nonce, 3 one of their connections, each
with a mark (0, or 1 once it was found) and its bytes, 4 a sorted set of the nonces by the time of their expiry, 5 a
hash of what is held: by connection (`n` for how many wait, `b` for bytes), and in all (`all`). Expiry goes by the
verifiers' clock, as that of the nonces does.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from extproc.nonce_store.envelopes import (
    MAX_BYTES_IN_STORE,
    MAX_BYTES_PER_CONNECTION,
    MAX_WAITING_PER_CONNECTION,
    PURGE_PER_KEEP,
    Find,
    Keep,
    KeepResult,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

ENVELOPE_KEYS: Final = (
    b"signet:envelope",
    b"signet:envelope:connection",
    b"signet:envelope:expiry",
    b"signet:envelope:held",
)
FULL: Final = b"F"
"""The answer of a script when the store holds as many bytes as it may."""
KEEP_ANSWERS: Final = {
    b"K": KeepResult.KEPT,
    b"S": KeepResult.SPENT,
    b"T": KeepResult.TAKEN,
    b"C": KeepResult.CONNECTION_FULL,
}

_KEEP: Final = """\
local nonce, connection, envelope = ARGV[1], ARGV[2], ARGV[3]
local size, expires, now = tonumber(ARGV[4]), ARGV[5], ARGV[6]
local expired = redis.call('ZRANGEBYSCORE', KEYS[4], '-inf', now, 'LIMIT', 0, tonumber(ARGV[7]))
for _, each in ipairs(expired) do
  local held = redis.call('HGET', KEYS[3], each)
  if held then
    local whose = string.sub(held, 1, 32)
    local bytes = tonumber(string.sub(held, 34))
    if string.sub(held, 33, 33) == '0' then redis.call('HINCRBY', KEYS[5], 'n' .. whose, -1) end
    if redis.call('HINCRBY', KEYS[5], 'b' .. whose, -bytes) <= 0 then
      redis.call('HDEL', KEYS[5], 'n' .. whose, 'b' .. whose)
    end
    redis.call('HINCRBY', KEYS[5], 'all', -bytes)
  end
  redis.call('HDEL', KEYS[2], each)
  redis.call('HDEL', KEYS[3], each)
  redis.call('ZREM', KEYS[4], each)
end
-- Whatever became of the counts, an empty store holds nothing.
if redis.call('ZCARD', KEYS[4]) == 0 then redis.call('DEL', KEYS[2], KEYS[3], KEYS[5]) end
if redis.call('HEXISTS', KEYS[1], nonce) == 1 then return 'S' end
local there = redis.call('HGET', KEYS[2], nonce)
if there then return there == envelope and 'K' or 'T' end
local waiting = tonumber(redis.call('HGET', KEYS[5], 'n' .. connection) or '0')
local mine = tonumber(redis.call('HGET', KEYS[5], 'b' .. connection) or '0')
if waiting >= tonumber(ARGV[8]) or mine + size > tonumber(ARGV[9]) then return 'C' end
if tonumber(redis.call('HGET', KEYS[5], 'all') or '0') + size > tonumber(ARGV[10]) then return 'F' end
redis.call('HSET', KEYS[2], nonce, envelope)
redis.call('HSET', KEYS[3], nonce, connection .. '0' .. string.format('%.0f', size))
redis.call('ZADD', KEYS[4], expires, nonce)
redis.call('HINCRBY', KEYS[5], 'n' .. connection, 1)
redis.call('HINCRBY', KEYS[5], 'b' .. connection, size)
redis.call('HINCRBY', KEYS[5], 'all', size)
return 'K'
"""
_FIND: Final = """\
local nonce, now, found_until = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local expires = redis.call('ZSCORE', KEYS[4], nonce)
if not expires or tonumber(expires) <= now then return false end
local held = redis.call('HGET', KEYS[3], nonce)
if held and string.sub(held, 33, 33) == '0' then
  redis.call('HSET', KEYS[3], nonce, string.sub(held, 1, 32) .. '1' .. string.sub(held, 34))
  redis.call('HINCRBY', KEYS[5], 'n' .. string.sub(held, 1, 32), -1)
  if found_until < tonumber(expires) then redis.call('ZADD', KEYS[4], ARGV[3], nonce) end
end
return redis.call('HGET', KEYS[2], nonce)
"""


@dataclass(frozen=True, slots=True)
class Script:
    """A script, and the name that Redis gives it."""

    text: str
    sha1: str

    @classmethod
    def of(cls, text: str) -> Script:
        """Name a script."""
        return cls(text, hashlib.sha1(text.encode("ascii"), usedforsecurity=False).hexdigest())


KEEP_SCRIPT: Final = Script.of(_KEEP)
FIND_SCRIPT: Final = Script.of(_FIND)


def keep_arguments(spent_key: bytes, keep: Keep) -> Sequence[bytes | int]:
    """Give keys and arguments of KEEP_SCRIPT."""
    bounds = (PURGE_PER_KEEP, MAX_WAITING_PER_CONNECTION, MAX_BYTES_PER_CONNECTION, MAX_BYTES_IN_STORE)
    times = (keep.expires_ms, keep.now_ms)
    return (*_keys(spent_key), keep.nonce, keep.connection, keep.envelope, keep.size_bytes, *times, *bounds)


def find_arguments(spent_key: bytes, find: Find) -> Sequence[bytes | int]:
    """Give keys and arguments of FIND_SCRIPT."""
    return (*_keys(spent_key), find.nonce, find.now_ms, find.found_until_ms)


def _keys(spent_key: bytes) -> tuple[int | bytes, ...]:
    return (1 + len(ENVELOPE_KEYS), spent_key, *ENVELOPE_KEYS)
