"""Declaring a Lua function: a Python signature names its keys and arguments, and the Python body reads its answer.

    @lua("return redis.call('HINCRBY', worker, field, step)")
    def count(answer: Any, /, *, worker: Key, field: str, step: int) -> int:
        return int(answer)

    counted = await count(redis, worker=keys.worker(worker_id), field="starts", step=1)

In Lua every parameter is a local of its name: a key, a text or a number; `Keys` and `Texts`, which come last, are
lists. All keys of a call share a hash tag. Beside them a body finds what the prelude below has.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, get_type_hints

from hotslot.errors import CoordinationUnavailableError
from shared.coordination.connection import RedisConnection, Script
from shared.coordination.keys import MAX_CHANGES, Key, lua_key_builders
from shared.coordination.unreadable import FORM_ERRORS

P = ParamSpec("P")
T = TypeVar("T")
Keys = Sequence[Key]
Texts = Sequence[str]

_CHANGES_PER_ENTRY = 200
_MAX_SINCE_LENGTH = 32
_MAX_AHEAD_MS = 86_400_000
"""By which a stream's newest id may lie in the future, after a clock was set back; with a larger one it is not ours."""

# Whatever lies under our keys and is not ours, by its type or its form, is replaced by functions that write there and
# passed over by those that read. `prefix` is the pool's, and an argument of every function.
_PRELUDE = f"""
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
{lua_key_builders()}
-- Whether the key can be used as this type: it is one, or is not there.
local function is(key, kind)
  local found = redis.call('TYPE', key).ok
  return found == kind or found == 'none'
end

-- Make the key usable as this type; false if something else had to go.
local function claim(key, kind)
  if is(key, kind) then return true end
  redis.call('DEL', key)
  return false
end

-- A number as we write it; nil for anything else.
local function whole(text)
  return text and #text <= 18 and string.match(text, '^%d+$') and tonumber(text) or nil
end

-- Since when the pool is known, as we write it.
local function since_or_none(key)
  local found = is(key, 'string') and redis.call('GET', key) or ''
  return #found <= {_MAX_SINCE_LENGTH} and string.match(found, '^%d+%.%d+$') or ''
end

-- To a stream that ends in a far future nothing can be added.
local function claim_stream(key)
  if not claim(key, 'stream') then return end
  local newest = redis.call('XREVRANGE', key, '+', '-', 'COUNT', 1)[1]
  if newest and tonumber(string.match(newest[1], '^%d+')) > now_ms + {_MAX_AHEAD_MS} then redis.call('DEL', key) end
end

local function publish(worker_id, changed, retention_ms)
  if #changed == 0 then return end
  claim_stream(changes_key)
  for first = 1, #changed, {_CHANGES_PER_ENTRY} do
    local part = {{}}
    for i = first, math.min(first + {_CHANGES_PER_ENTRY - 1}, #changed) do part[#part + 1] = changed[i] end
    redis.call('XADD', changes_key, 'MAXLEN', {MAX_CHANGES}, '*', 'worker', worker_id, 'changes', cjson.encode(part))
  end
  redis.call('PEXPIRE', changes_key, retention_ms)
end

local function forget(worker_id, retention_ms)
  local changed = {{}}
  claim(residency_key(worker_id), 'hash')
  local held = redis.call('HGETALL', residency_key(worker_id))
  for i = 1, #held, 2 do
    claim(placements_key(held[i]), 'hash')
    redis.call('HDEL', placements_key(held[i]), worker_id)
    changed[#changed + 1] = {{held[i], held[i + 1], ''}}
  end
  publish(worker_id, changed, retention_ms)
  redis.call('DEL', residency_key(worker_id), worker_key(worker_id))
  claim(leases_key, 'zset')
  redis.call('ZREM', leases_key, worker_id)
end

-- A few at a time: every caller helps, and no call takes long.
local function sweep(retention_ms)
  claim(leases_key, 'zset')
  for _, gone in ipairs(redis.call('ZRANGEBYSCORE', leases_key, '-inf', now_ms, 'LIMIT', 0, 4)) do
    forget(gone, retention_ms)
  end
end
"""


class LuaFunction(Generic[P, T]):
    """A function that Redis runs; called with a connection, and with its keys and arguments by name."""

    def __init__(self, read: Callable[Concatenate[Any, P], T], body: str) -> None:
        kinds = get_type_hints(read)
        named = [each.name for each in inspect.signature(read).parameters.values() if each.kind is each.KEYWORD_ONLY]
        self._keys = [name for name in named if kinds[name] in (Key, Keys)]
        self._arguments = [name for name in named if name not in self._keys]
        self._read = read
        places = [*_locals("KEYS", self._keys, kinds), *_locals("ARGV", self._arguments, kinds)]
        self.script = Script(read.__name__, "\n".join(places) + _PRELUDE + body)

    async def __call__(self, redis: RedisConnection, /, *args: P.args, **named: P.kwargs) -> T:
        """Run it; raises CoordinationUnavailableError, also for an answer that no such function gives."""
        keys = [Key(str(key)) for key in _flat(self._keys, named)]
        arguments = list(_flat(self._arguments, named))
        answer = await redis.evaluate(self.script, keys, arguments)
        try:
            return self._read(answer, *args, **named)
        except FORM_ERRORS as exc:
            raise CoordinationUnavailableError(
                f"Redis answers {self.script.name} as none of its functions does: {type(exc).__name__}: {exc}"[:300],
                retry_after_s=1.0,
            ) from exc


def lua(body: str) -> Callable[[Callable[Concatenate[Any, P], T]], LuaFunction[P, T]]:
    """Declare a function by its Lua text; the decorated Python function reads what that returns."""
    return lambda read: LuaFunction(read, body)


def _locals(table: str, names: Sequence[str], kinds: Mapping[str, Any]) -> Iterator[str]:
    for place, name in enumerate(names, 1):
        if kinds[name] in (Keys, Texts):
            yield f"local {name} = {{}}\nfor i = {place}, #{table} do {name}[#{name} + 1] = {table}[i] end"
        elif kinds[name] is int:
            yield f"local {name} = tonumber({table}[{place}])"
        else:
            yield f"local {name} = {table}[{place}]"


def _flat(names: Sequence[str], values: Mapping[str, Any]) -> Iterator[str | int]:
    for name in names:
        value = values[name]
        if isinstance(value, str | int):
            yield value
        else:
            yield from value
