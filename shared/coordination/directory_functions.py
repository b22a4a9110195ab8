"""Lua functions that read a pool: each reads several keys at once, on Redis's clock.

Revisions are the ids of the stream of changes, `ms * 4096 + sequence`: they go forward even over a flush.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shared.coordination.keys import Key
from shared.coordination.lua import Keys, lua

REVISION_SEQUENCES = 4096
MAX_WORKERS = 10_000
MAX_HOLDERS = 10_000
"""Workers that hold one version."""
MAX_TEXT_BYTES = 16 * 1024
"""Longest text that a record is read from; a worker writes less than one KiB, and per tenant of a version 100 bytes."""
MAX_READ_BYTES = 16 * 2**20
"""Most bytes of one answer: whoever fills Redis fills no reader's memory."""
MAX_ENTRY_BYTES = 2**20
"""Longest entry of the stream of changes."""


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
local answer = {{string.format('%d', now_ms), since_or_none(since)}}
local left = {MAX_READ_BYTES}
local function add(id, fields)
  left = left - #id
  for i = 1, {len(_WORKER_FIELDS)} do left = left - #(fields[i] or '') end
  if #id > {MAX_TEXT_BYTES} or left < 0 then return end
  answer[#answer + 1] = id
  for i = 1, {len(_WORKER_FIELDS)} do
    local field = fields[i] or ''
    answer[#answer + 1] = #field <= {MAX_TEXT_BYTES} and field or ''
  end
end
if not is(leases, 'zset') then
  add(leases, {{}})
  return answer
end
for _, id in ipairs(redis.call('ZRANGEBYSCORE', leases, '(' .. string.format('%d', now_ms), '+inf',
  'LIMIT', 0, {MAX_WORKERS})) do
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
    f"""
local answer = {{string.format('%d', now_ms), since_or_none(since)}}
local left = {MAX_READ_BYTES}
for _, key in ipairs(placements) do
  local found, all = {{}}, {{}}
  if is(key, 'hash') then all = redis.call('HGETALL', key) else found = {{'', ''}} end
  if #all > 2 * {MAX_HOLDERS} then all, found = {{}}, {{'', ''}} end
  for j = 1, #all, 2 do
    local size = #all[j] + #all[j + 1]
    if size <= {MAX_TEXT_BYTES} and size <= left and redis.call('EXISTS', worker_key(all[j])) == 1 then
      left = left - size
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


@lua(
    f"""
local answer, left = {{}}, {MAX_READ_BYTES}
local all = is(residency, 'hash') and redis.call('HGETALL', residency) or {{'', ''}}
for j = 1, #all, 2 do
  local size = #all[j] + #all[j + 1]
  if size <= {MAX_TEXT_BYTES} and size <= left then
    left = left - size
    answer[#answer + 1] = all[j]
    answer[#answer + 1] = all[j + 1]
  end
end
return answer
"""
)
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


# An entry that is too long stays with nothing in it, so that its revision is passed.
@lua(
    f"""
sweep(retention_ms)
claim_stream(changes)
redis.call('PEXPIRE', changes, retention_ms, 'GT')
local oldest = redis.call('XRANGE', changes, '-', '+', 'COUNT', 1)
local entries, left = redis.call('XRANGE', changes, '(' .. start, '+', 'COUNT', count), {MAX_READ_BYTES}
for _, entry in ipairs(entries) do
  local size = 0
  for _, text in ipairs(entry[2]) do size = size + #text end
  if size > {MAX_ENTRY_BYTES} or size > left then entry[2] = {{}} else left = left - size end
end
return {{string.format('%d', now_ms), oldest[1] and oldest[1][1] or '', entries}}
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
