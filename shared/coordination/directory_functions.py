"""Lua functions that read a pool: each reads several keys at once, on Redis's clock.

Revisions are the ids of the stream of changes, `ms * 4096 + sequence`: they go forward even over a flush.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shared.coordination.keys import Key
from shared.coordination.lua import Keys, lua

REVISION_SEQUENCES = 4096


@dataclass(frozen=True, slots=True)
class WorkersRead:
    """Fields of each worker whose lease runs; where something else lies, its key and empty fields."""

    time_s: float
    since: str
    """Empty when the pool is not known."""
    fields: tuple[tuple[str, Mapping[str, str]], ...]


_WORKER_FIELDS = ("info", "state", "load", "lease_until_ms", "residency_revision")


@lua(
    f"""
local answer = {{string.format('%d', now_ms), is(since, 'string') and redis.call('GET', since) or ''}}
local function add(id, fields)
  answer[#answer + 1] = id
  for i = 1, {len(_WORKER_FIELDS)} do answer[#answer + 1] = fields[i] or '' end
end
if not is(leases, 'zset') then
  add(leases, {{}})
  return answer
end
for _, id in ipairs(redis.call('ZRANGEBYSCORE', leases, '(' .. string.format('%d', now_ms), '+inf')) do
  if is(worker_key(id), 'hash') then
    local fields = redis.call('HMGET', worker_key(id), {", ".join(f"'{name}'" for name in _WORKER_FIELDS)})
    if fields[1] then add(id, fields) end
  else
    add(worker_key(id), {{}})
  end
end
return answer
"""
)
def workers(answer: Any, /, *, leases: Key, since: Key, prefix: str) -> WorkersRead:
    """All workers of a pool."""
    now_ms, since, *flat = answer
    width = 1 + len(_WORKER_FIELDS)
    rows = (flat[start : start + width] for start in range(0, len(flat), width))
    found = tuple((worker_id, dict(zip(_WORKER_FIELDS, values, strict=True))) for worker_id, *values in rows)
    return WorkersRead(int(now_ms) / 1e3, since, found)


@dataclass(frozen=True, slots=True)
class PlacementsRead:
    """worker_id and value of each holder of each version; both are empty where something else lies."""

    time_s: float
    since: str
    found: tuple[tuple[tuple[str, str], ...], ...]


@lua(
    """
local answer = {string.format('%d', now_ms), is(since, 'string') and redis.call('GET', since) or ''}
for _, key in ipairs(placements) do
  local found, all = {}, {}
  if is(key, 'hash') then all = redis.call('HGETALL', key) else found = {'', ''} end
  for j = 1, #all, 2 do
    if redis.call('EXISTS', worker_key(all[j])) == 1 then
      found[#found + 1] = all[j]
      found[#found + 1] = all[j + 1]
    end
  end
  answer[#answer + 1] = found
end
return answer
"""
)
def placements(answer: Any, /, *, since: Key, placements: Keys, prefix: str) -> PlacementsRead:
    """Find who holds these versions, among workers whose lease runs."""
    now_ms, since, *found = answer
    return PlacementsRead(int(now_ms) / 1e3, since, tuple(tuple(_pairs(flat)) for flat in found))


@lua("return is(residency, 'hash') and redis.call('HGETALL', residency) or {'', ''}")
def residency(answer: Any, /, *, residency: Key, prefix: str) -> list[tuple[str, str]]:
    """Read a worker's residency: digest and value of each version; both are empty where something else lies."""
    return list(_pairs(answer))


@lua(
    """
claim_stream(changes)
if redis.call('XLEN', changes) == 0 then
  local id = redis.call('XADD', changes, '*', 'worker', '', 'changes', '[]')
  redis.call('PEXPIRE', changes, retention_ms)
  return id
end
return redis.call('XREVRANGE', changes, '+', '-', 'COUNT', 1)[1][1]
"""
)
def tail(answer: Any, /, *, changes: Key, prefix: str, retention_ms: int) -> int:
    """Find the revision at which the stream of changes ends.

    An empty entry is made if there is no stream, so that a watcher can tell "nothing happened since" from "what
    happened is gone".
    """
    return _revision(answer)


@dataclass(frozen=True, slots=True)
class EntriesRead:
    """Entries of the stream of changes, each with its revision and fields."""

    time_ms: int
    oldest_revision: int | None
    entries: tuple[tuple[int, Mapping[str, str]], ...]


@lua(
    """
sweep(retention_ms)
claim_stream(changes)
redis.call('PEXPIRE', changes, retention_ms, 'GT')
local oldest = redis.call('XRANGE', changes, '-', '+', 'COUNT', 1)
local entries = redis.call('XRANGE', changes, '(' .. start, '+', 'COUNT', count)
return {string.format('%d', now_ms), oldest[1] and oldest[1][1] or '', entries}
"""
)
def changes(answer: Any, /, *, changes: Key, prefix: str, start: str, count: int, retention_ms: int) -> EntriesRead:
    """Read what came after an id. Watching keeps the stream, and ends what dead workers left when no live one does."""
    now_ms, oldest, entries = answer
    read = tuple((_revision(entry_id), dict(_pairs(flat))) for entry_id, flat in entries)
    return EntriesRead(int(now_ms), _revision(oldest) if oldest else None, read)


def stream_id(revision: int) -> str:
    """Id of the stream's entry at a revision."""
    return f"{revision // REVISION_SEQUENCES}-{revision % REVISION_SEQUENCES}"


def _revision(entry_id: str) -> int:
    milliseconds, _, sequence = entry_id.partition("-")
    return int(milliseconds) * REVISION_SEQUENCES + int(sequence)


def _pairs(flat: Sequence[str]) -> Iterator[tuple[str, str]]:
    return zip(flat[::2], flat[1::2], strict=True)
