"""The part of the Redis store that runs inside Redis: one script spends a whole batch atomically.

KEYS: 1 the contents key; 2… one key a spend.
ARGV: 1 now, 2 how long to keep, 3 the retry window, 4 the skew, all in milliseconds; 5… for each spend
its 32-byte token, then the challenge's time of issue and now in decimal digits, each after a space.

Answers `<since_ms> <codes>` with one character a spend: F fresh, T retried, R replayed, S stale.

The contents key says since when, and for which run of which server, nothing was lost. Another run id
(restart, failover), another count of evicted keys, or no such key (FLUSHALL) begins new contents: from
then on, challenges issued before now + skew are stale, because the clock of the verifier that issued
them may be that much ahead. A server that may evict keys is refused, and what it evicted meanwhile is
assumed lost. Without spends the script is a probe and writes that key again, so that a server that is out of
memory, or may not write, is found out.
"""

from __future__ import annotations

import hashlib
from typing import Final

EVICTION_REFUSED: Final = "SIGNETEVICTION"
"""First word of the script's error when the server's maxmemory-policy is not noeviction."""

SPEND_SCRIPT: Final = """\
local run_id = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
local policy = string.match(redis.call('INFO', 'memory'), 'maxmemory_policy:([%w-]+)')
local evicted = string.match(redis.call('INFO', 'stats'), 'evicted_keys:(%d+)')
if policy ~= 'noeviction' then
  redis.call('DEL', KEYS[1])
  return redis.error_reply('SIGNETEVICTION maxmemory-policy must be noeviction')
end
local owner = run_id .. ':' .. evicted
local kept = redis.call('GET', KEYS[1])
local since
if kept then
  local kept_owner, kept_since = string.match(kept, '^(%S+) (%d+)$')
  if kept_owner == owner then since = tonumber(kept_since) end
end
if not since then
  since = tonumber(ARGV[1]) + tonumber(ARGV[4])
  redis.call('SET', KEYS[1], owner .. ' ' .. string.format('%.0f', since))
elseif #KEYS == 1 then
  redis.call('SET', KEYS[1], kept)
end
local window = tonumber(ARGV[3])
local codes = {}
for i = 2, #KEYS do
  local spend = ARGV[i + 3]
  local token = string.sub(spend, 1, 32)
  local issued, now = string.match(spend, '^ (%d+) (%d+)$', 33)
  if tonumber(issued) < since then
    codes[#codes + 1] = 'S'
  else
    local first = redis.call('GET', KEYS[i])
    if not first then
      redis.call('SET', KEYS[i], token .. now, 'PX', ARGV[2])
      codes[#codes + 1] = 'F'
    elseif string.sub(first, 1, 32) == token and tonumber(now) - tonumber(string.sub(first, 33)) <= window then
      codes[#codes + 1] = 'T'
    else
      codes[#codes + 1] = 'R'
    end
  end
end
return string.format('%.0f', since) .. ' ' .. table.concat(codes)
"""

SPEND_SHA1: Final = hashlib.sha1(SPEND_SCRIPT.encode("ascii"), usedforsecurity=False).hexdigest()
"""The name that Redis gives the script."""
