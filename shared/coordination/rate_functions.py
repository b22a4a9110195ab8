"""Lua function that charges a tenant's rate: a token bucket on Redis's clock, for all processes of a fleet."""

from typing import Any

from shared.coordination.keys import Key
from shared.coordination.lua import lua


# What is no bucket of ours, or was written by a clock that has been set back since, is a full one.
@lua(
    """
claim(bucket, 'hash')
local held = redis.call('HMGET', bucket, 'level', 'time_ms')
local level, time_ms = tonumber(held[1]), whole(held[2])
if not level or level ~= level or level < -1000 * limit or not time_ms or time_ms > now_ms + 1000 then
  level, time_ms = limit, now_ms
end
level = math.min(limit, level + math.max(0, now_ms - time_ms) * limit / 60000)
local wait_ms = 0
if is_owed == 1 or level >= amount then
  level = math.min(limit, level - amount)
else
  wait_ms = math.ceil((amount - level) * 60000 / limit)
end
redis.call('HSET', bucket, 'level', string.format('%.3f', level), 'time_ms', string.format('%d', now_ms))
redis.call('PEXPIRE', bucket, math.ceil((limit - level) * 60000 / limit) + 1000)
return {string.format('%d', wait_ms), string.format('%d', math.max(0, math.ceil(limit - level)))}
"""
)
def charge(answer: Any, /, *, bucket: Key, prefix: str, amount: int, limit: int, is_owed: int) -> tuple[float, int]:
    """Take an amount of a minute's limit, or say for how many seconds to wait; and what is used of it then.

    An amount below 0 is given back; one that is owed is taken whatever is left. A bucket that is full is forgotten.
    """
    wait_ms, used = answer
    return int(wait_ms) / 1e3, int(used)
