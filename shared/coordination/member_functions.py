"""Lua functions of a worker that is a member of its pool: each changes several keys at once, on Redis's clock."""

from dataclasses import dataclass
from typing import Any

from shared.coordination.keys import Key
from shared.coordination.lua import Texts, lua


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease that was taken or renewed."""

    expire_time_s: float
    """On Redis's clock."""
    residency_revision: int
    """Revision of the report that Redis holds; 0 when it holds none, so that a whole one is due."""


@dataclass(frozen=True, slots=True)
class NewerStart:
    """A lease that was refused: another process holds this endpoint or this worker_id."""

    epoch: int


# A lease that never ends, a holder whose epoch is no number or this worker's own, and an endpoint's worker that is not
# there, are not ours.
@lua(
    """
for _, key in ipairs({worker, endpoint}) do
  if claim(key, 'hash') and redis.call('PTTL', key) == -1 then redis.call('DEL', key) end
end
claim(leases, 'zset')
claim(changes, 'stream')
local reported = claim(residency, 'hash')
local held = redis.call('HMGET', worker, 'token', 'epoch', 'residency_revision')
local own_epoch = tonumber(epoch)
if held[1] and held[1] ~= token and (whole(held[2]) or own_epoch) ~= own_epoch then return {'stale', held[2]} end
local there = redis.call('HMGET', endpoint, 'worker_id', 'epoch')
if there[1] and there[1] ~= worker_id then
  local its_epoch = whole(there[2])
  if its_epoch and its_epoch >= own_epoch and redis.call('EXISTS', worker_key(there[1])) == 1 then
    return {'stale', there[2]}
  end
  forget(there[1], retention_ms)
end
if not claim(since, 'string') or redis.call('PTTL', since) == -1
  or not string.match(redis.call('GET', since) or '0.000000', '^%d+%.%d%d%d%d%d%d$') then
  redis.call('DEL', since)
end
local lease_until_ms = now_ms + lease_ms
redis.call('HSET', worker, 'token', token, 'epoch', epoch, 'info', info, 'state', state, 'load', load,
  'lease_until_ms', string.format('%d', lease_until_ms))
redis.call('PEXPIRE', worker, lease_ms)
redis.call('HSET', endpoint, 'worker_id', worker_id, 'epoch', epoch)
redis.call('PEXPIRE', endpoint, lease_ms)
redis.call('ZADD', leases, lease_until_ms, worker_id)
redis.call('PEXPIRE', leases, retention_ms)
redis.call('PEXPIRE', changes, retention_ms)
redis.call('SET', since, string.format('%d.%06d', time[1], time[2]), 'NX', 'PX', since_ms)
redis.call('PEXPIRE', since, since_ms, 'GT')
sweep(retention_ms)
return {'ok', string.format('%d', lease_until_ms), reported and whole(held[3]) and held[3] or '0'}
"""
)
def announce(
    answer: Any,
    /,
    *,
    worker: Key,
    endpoint: Key,
    leases: Key,
    changes: Key,
    since: Key,
    residency: Key,
    prefix: str,
    worker_id: str,
    token: str,
    epoch: str,
    info: str,
    state: str,
    load: str,
    lease_ms: int,
    retention_ms: int,
    since_ms: int,
) -> Lease | NewerStart:
    """Take or renew a lease: one operation, so that a flushed Redis needs no path of its own."""
    if answer[0] == "stale":
        return NewerStart(int(answer[1]))
    return Lease(int(answer[1]) / 1e3, int(answer[2]))


@lua(
    """
for _, key in ipairs({worker, endpoint}) do claim(key, 'hash') end
if redis.call('HGET', worker, 'token') ~= token then return 0 end
forget(worker_id, retention_ms)
if redis.call('HGET', endpoint, 'worker_id') == worker_id then redis.call('DEL', endpoint) end
redis.call('PEXPIRE', since, lease_ms, 'GT')
return 1
"""
)
def release(
    answer: Any,
    /,
    *,
    worker: Key,
    endpoint: Key,
    since: Key,
    prefix: str,
    worker_id: str,
    token: str,
    retention_ms: int,
    lease_ms: int,
) -> bool:
    """Give a lease back and remove everything that the worker put here; False if it was not held.

    Since when the pool is known is kept for a lease, so that readers which saw this one can tell that it was given
    back rather than lost.
    """
    return bool(answer)


@lua(
    """
for _, key in ipairs({worker, residency}) do claim(key, 'hash') end
if redis.call('HGET', worker, 'token') ~= token then return 0 end
local before, stored = {}, redis.call('HGETALL', residency)
for i = 1, #stored, 2 do before[stored[i]] = stored[i + 1] end
local changed = {}
for i = 1, #residents, 2 do
  local digest, value = residents[i], residents[i + 1]
  if before[digest] ~= value then changed[#changed + 1] = {digest, before[digest] or '', value} end
  before[digest] = nil
  claim(placements_key(digest), 'hash')
  redis.call('HSET', residency, digest, value)
  redis.call('HSET', placements_key(digest), worker_id, value)
  redis.call('PEXPIRE', placements_key(digest), retention_ms)
end
for digest, value in pairs(before) do
  redis.call('HDEL', residency, digest)
  claim(placements_key(digest), 'hash')
  redis.call('HDEL', placements_key(digest), worker_id)
  changed[#changed + 1] = {digest, value, ''}
end
redis.call('HSET', worker, 'residency_revision', revision)
redis.call('PEXPIRE', residency, retention_ms)
publish(worker_id, changed, retention_ms)
return 1
"""
)
def report(
    answer: Any,
    /,
    *,
    worker: Key,
    residency: Key,
    prefix: str,
    worker_id: str,
    token: str,
    revision: int,
    retention_ms: int,
    residents: Texts,
) -> bool:
    """Replace a worker's residency by a whole new one, digest and value in turn; False if its lease is not held."""
    return bool(answer)


@dataclass(frozen=True, slots=True)
class Claim:
    """Record of the worker that holds a lease or an endpoint, as it lies in Redis; empty texts where nothing does."""

    worker_id: str
    epoch: str
    token: str
    info: str
    state: str
    load: str


@lua(
    """
local answer = {}
local function add(id, epoch, key)
  local held = is(key, 'hash') and redis.call('HMGET', key, 'token', 'info', 'state', 'load') or {}
  local texts = {id, epoch, held[1] or '', held[2] or '', held[3] or '', held[4] or ''}
  for _, text in ipairs(texts) do answer[#answer + 1] = #text <= max_bytes and text or '' end
end
add(worker_id, is(worker, 'hash') and redis.call('HGET', worker, 'epoch') or '', worker)
local there = is(endpoint, 'hash') and redis.call('HMGET', endpoint, 'worker_id', 'epoch') or {}
add(there[1] or '', there[2] or '', worker_key(there[1] or ''))
return answer
"""
)
def claims(
    answer: Any, /, *, worker: Key, endpoint: Key, prefix: str, worker_id: str, max_bytes: int
) -> tuple[Claim, Claim]:
    """Read which worker holds this lease, and which this endpoint."""
    held, there = Claim(*answer[:6]), Claim(*answer[6:])
    return held, there


# Only what was read and judged goes: a start that has claimed the place meanwhile stays.
@lua(
    """
local function as_read(text) return text and #text <= max_bytes and text or '' end
if claim(worker, 'hash') then
  local held = redis.call('HMGET', worker, 'token', 'epoch', 'load')
  if held[1] ~= token and as_read(held[1]) == held_token and as_read(held[2]) == held_epoch
    and as_read(held[3]) == held_load then
    redis.call('DEL', worker)
  end
end
if claim(endpoint, 'hash') then
  local there = redis.call('HMGET', endpoint, 'worker_id', 'epoch')
  local key = worker_key(there[1] or '')
  local load = is(key, 'hash') and redis.call('HGET', key, 'load') or ''
  if as_read(there[1]) == there_id and as_read(there[2]) == there_epoch and as_read(load) == there_load then
    redis.call('DEL', endpoint)
  end
end
return 1
"""
)
def overrule(
    answer: Any,
    /,
    *,
    worker: Key,
    endpoint: Key,
    prefix: str,
    token: str,
    held_token: str,
    held_epoch: str,
    held_load: str,
    there_id: str,
    there_epoch: str,
    there_load: str,
    max_bytes: int,
) -> None:
    """Remove claims that no worker of the pool has signed, as far as they are still those that were read."""


@lua(
    """
claim(pools, 'zset')
redis.call('ZADD', pools, now_ms, base_model_digest)
redis.call('ZREMRANGEBYSCORE', pools, '-inf', now_ms - retention_ms)
redis.call('PEXPIRE', pools, retention_ms)
return 1
"""
)
def touch_pool(answer: Any, /, *, pools: Key, prefix: str, base_model_digest: str, retention_ms: int) -> None:
    """Remember that a pool exists; the list is in another slot than the pool, whose prefix is not needed."""
