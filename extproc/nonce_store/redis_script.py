"""The part of the Redis store that runs inside Redis: one script spends a whole batch atomically.

KEYS: 1 a hash of the spent nonces, 2 a sorted set of the same nonces by the time of their first spend.
ARGV: 1 now, 2 how long to keep, 3 the retry window, 4 the skew, all in milliseconds; then for each spend
its nonce, and its 32-byte token with the challenge's time of issue and now in decimal digits, each after
a space.

Answers `<since_ms> <codes>` with one character a spend: F fresh, T retried, R replayed, S stale.

Nothing expires by the server's clock, for challenges age by the verifiers': where one stepped, a nonce
would be forgotten whose challenge is still young. The script drops what the verifiers' time has passed, a
few nonces at a time, and counts the challenges that those may have been as stale, should that time come
back.

The hash's field `contents` says since when, and for which run of which server, nothing was lost. Another
run id (restart, failover), another count of evicted keys, no such field (FLUSHALL), or two keys that do
not hold the same number of nonces, begin new contents: from then on, challenges issued before now + skew
are stale, because the clock of the verifier that issued them may be that much ahead. A server that may
evict keys is refused, and what it evicted meanwhile is assumed lost. Without spends the script is a probe
and writes that field again, so that a server that is out of memory, or may not write, is found out.
"""

from __future__ import annotations

import hashlib
from typing import Final

EVICTION_REFUSED: Final = "SIGNETEVICTION"
"""First word of the script's error when the server's maxmemory-policy is not noeviction."""

PURGE_PER_SCRIPT: Final = 64
PURGE_PER_SPEND: Final = 4
"""Expired nonces dropped at most by a script, and for each spend of it: more than come in, few enough not to stall."""

SPEND_SCRIPT: Final = """\
local run_id = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
local policy = string.match(redis.call('INFO', 'memory'), 'maxmemory_policy:([%w-]+)')
local evicted = string.match(redis.call('INFO', 'stats'), 'evicted_keys:(%d+)')
if policy ~= 'noeviction' then
  redis.call('HDEL', KEYS[1], 'contents')
  return redis.error_reply('SIGNETEVICTION maxmemory-policy must be noeviction')
end
local owner = run_id .. ':' .. evicted
local kept = redis.call('HGET', KEYS[1], 'contents')
local since
if redis.call('HLEN', KEYS[1]) - (kept and 1 or 0) ~= redis.call('ZCARD', KEYS[2]) then
  redis.call('DEL', KEYS[1], KEYS[2])
elseif kept then
  local kept_owner, kept_since = string.match(kept, '^(%S+) (%d+)$')
  if kept_owner == owner then since = tonumber(kept_since) end
end
local spends = (#ARGV - 4) / 2
local changed = spends == 0 or not since
since = since or tonumber(ARGV[1]) + tonumber(ARGV[4])
local issued_ms, now_ms = {}, {}
local earliest = spends == 0 and tonumber(ARGV[1]) or math.huge
for i = 1, spends do
  local issued, now = string.match(ARGV[4 + 2 * i], '^ (%d+) (%d+)$', 33)
  issued_ms[i], now_ms[i] = tonumber(issued), tonumber(now)
  earliest = math.min(earliest, now_ms[i])
end
-- First of all writes: also a server that is out of memory lets nonces go.
local horizon = earliest - tonumber(ARGV[2])
local expired = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', string.format('%.0f', horizon),
  'LIMIT', 0, PURGE_PER_SCRIPT + PURGE_PER_SPEND * spends)
if #expired > 0 then
  redis.call('HDEL', KEYS[1], unpack(expired))
  redis.call('ZREM', KEYS[2], unpack(expired))
  -- Spent at the horizon or before, these were issued at most the skew later.
  since, changed = math.max(since, horizon + tonumber(ARGV[4]) + 1), true
end
if changed then
  redis.call('HSET', KEYS[1], 'contents', owner .. ' ' .. string.format('%.0f', since))
end
local window = tonumber(ARGV[3])
local codes = {}
for i = 1, spends do
  local nonce, token = ARGV[3 + 2 * i], string.sub(ARGV[4 + 2 * i], 1, 32)
  if issued_ms[i] < since then
    codes[i] = 'S'
  else
    local first = redis.call('HGET', KEYS[1], nonce)
    if not first then
      local now = string.format('%.0f', now_ms[i])
      redis.call('HSET', KEYS[1], nonce, token .. now)
      redis.call('ZADD', KEYS[2], now, nonce)
      codes[i] = 'F'
    elseif string.sub(first, 1, 32) == token and now_ms[i] - tonumber(string.sub(first, 33)) <= window then
      codes[i] = 'T'
    else
      codes[i] = 'R'
    end
  end
end
return string.format('%.0f', since) .. ' ' .. table.concat(codes)
""".replace("PURGE_PER_SCRIPT", str(PURGE_PER_SCRIPT)).replace("PURGE_PER_SPEND", str(PURGE_PER_SPEND))

SPEND_SHA1: Final = hashlib.sha1(SPEND_SCRIPT.encode("ascii"), usedforsecurity=False).hexdigest()
"""The name that Redis gives the script."""
