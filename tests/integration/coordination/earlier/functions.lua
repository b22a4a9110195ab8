--- prelude
local prefix = ARGV[1]
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)

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

-- To a stream that ends in a far future nothing can be added.
local function claim_stream(key)
  if not claim(key, 'stream') then return end
  local newest = redis.call('XREVRANGE', key, '+', '-', 'COUNT', 1)[1]
  if newest and tonumber(string.match(newest[1], '^%d+')) > now_ms + 86400000 then redis.call('DEL', key) end
end

local function publish(worker_id, changes, retention_ms)
  local key = prefix .. ':changes'
  if #changes > 0 then claim_stream(key) end
  for first = 1, #changes, 200 do
    local part = {}
    for i = first, math.min(first + 199, #changes) do part[#part + 1] = changes[i] end
    redis.call('XADD', key, 'MAXLEN', 2000, '*', 'worker', worker_id, 'changes', cjson.encode(part))
  end
  if #changes > 0 then redis.call('PEXPIRE', key, retention_ms) end
end

local function forget(worker_id, retention_ms)
  local changes = {}
  claim(prefix .. ':residency:' .. worker_id, 'hash')
  local held = redis.call('HGETALL', prefix .. ':residency:' .. worker_id)
  for i = 1, #held, 2 do
    claim(prefix .. ':placements:' .. held[i], 'hash')
    redis.call('HDEL', prefix .. ':placements:' .. held[i], worker_id)
    changes[#changes + 1] = {held[i], held[i + 1], ''}
  end
  publish(worker_id, changes, retention_ms)
  redis.call('DEL', prefix .. ':residency:' .. worker_id, prefix .. ':worker:' .. worker_id)
  claim(prefix .. ':leases', 'zset')
  redis.call('ZREM', prefix .. ':leases', worker_id)
end

-- A few at a time: everybody helps, and no call takes long.
local function sweep(retention_ms)
  claim(prefix .. ':leases', 'zset')
  for _, gone in ipairs(redis.call('ZRANGEBYSCORE', prefix .. ':leases', '-inf', now_ms, 'LIMIT', 0, 4)) do
    forget(gone, retention_ms)
  end
end
--- announce
local worker_id, token, epoch = ARGV[2], ARGV[3], tonumber(ARGV[4])
local lease_ms, retention_ms = tonumber(ARGV[8]), tonumber(ARGV[9])
for i = 1, 2 do
  if claim(KEYS[i], 'hash') and redis.call('PTTL', KEYS[i]) == -1 then redis.call('DEL', KEYS[i]) end
end
claim(KEYS[3], 'zset')
claim(KEYS[4], 'stream')
local reported = claim(KEYS[6], 'hash')
local held = redis.call('HMGET', KEYS[1], 'token', 'epoch', 'residency_revision')
if held[1] and held[1] ~= token and (whole(held[2]) or epoch) ~= epoch then return {'stale', held[2]} end
local there = redis.call('HMGET', KEYS[2], 'worker_id', 'epoch')
if there[1] and there[1] ~= worker_id then
  local its_epoch = whole(there[2])
  if its_epoch and its_epoch >= epoch and redis.call('EXISTS', prefix .. ':worker:' .. there[1]) == 1 then
    return {'stale', there[2]}
  end
  forget(there[1], retention_ms)
end
if not claim(KEYS[5], 'string') or redis.call('PTTL', KEYS[5]) == -1
  or not string.match(redis.call('GET', KEYS[5]) or '0.000000', '^%d+%.%d%d%d%d%d%d$') then
  redis.call('DEL', KEYS[5])
end
local lease_until_ms = now_ms + lease_ms
redis.call('HSET', KEYS[1], 'token', token, 'epoch', ARGV[4], 'info', ARGV[5], 'state', ARGV[6], 'load', ARGV[7],
  'lease_until_ms', string.format('%d', lease_until_ms))
redis.call('PEXPIRE', KEYS[1], lease_ms)
redis.call('HSET', KEYS[2], 'worker_id', worker_id, 'epoch', ARGV[4])
redis.call('PEXPIRE', KEYS[2], lease_ms)
redis.call('ZADD', KEYS[3], lease_until_ms, worker_id)
redis.call('PEXPIRE', KEYS[3], retention_ms)
redis.call('PEXPIRE', KEYS[4], retention_ms)
redis.call('SET', KEYS[5], string.format('%d.%06d', time[1], time[2]), 'NX', 'PX', ARGV[10])
redis.call('PEXPIRE', KEYS[5], ARGV[10], 'GT')
sweep(retention_ms)
return {'ok', string.format('%d', lease_until_ms), reported and whole(held[3]) and held[3] or '0'}
--- release
for i = 1, 2 do claim(KEYS[i], 'hash') end
if redis.call('HGET', KEYS[1], 'token') ~= ARGV[3] then return 0 end
forget(ARGV[2], tonumber(ARGV[4]))
if redis.call('HGET', KEYS[2], 'worker_id') == ARGV[2] then redis.call('DEL', KEYS[2]) end
redis.call('PEXPIRE', KEYS[3], ARGV[5], 'GT')
return 1
--- report
local worker_id, retention_ms = ARGV[2], tonumber(ARGV[5])
for i = 1, 2 do claim(KEYS[i], 'hash') end
if redis.call('HGET', KEYS[1], 'token') ~= ARGV[3] then return 0 end
local before, stored = {}, redis.call('HGETALL', KEYS[2])
for i = 1, #stored, 2 do before[stored[i]] = stored[i + 1] end
local changes = {}
for i = 6, #ARGV, 2 do
  local digest, value = ARGV[i], ARGV[i + 1]
  local placements = prefix .. ':placements:' .. digest
  if before[digest] ~= value then changes[#changes + 1] = {digest, before[digest] or '', value} end
  before[digest] = nil
  claim(placements, 'hash')
  redis.call('HSET', KEYS[2], digest, value)
  redis.call('HSET', placements, worker_id, value)
  redis.call('PEXPIRE', placements, retention_ms)
end
for digest, value in pairs(before) do
  redis.call('HDEL', KEYS[2], digest)
  claim(prefix .. ':placements:' .. digest, 'hash')
  redis.call('HDEL', prefix .. ':placements:' .. digest, worker_id)
  changes[#changes + 1] = {digest, value, ''}
end
redis.call('HSET', KEYS[1], 'residency_revision', ARGV[4])
redis.call('PEXPIRE', KEYS[2], retention_ms)
publish(worker_id, changes, retention_ms)
return 1
--- workers
local answer = {string.format('%d', now_ms), is(KEYS[2], 'string') and redis.call('GET', KEYS[2]) or ''}
local function add(id, fields)
  answer[#answer + 1] = id
  for i = 1, 5 do answer[#answer + 1] = fields[i] or '' end
end
if not is(KEYS[1], 'zset') then
  add(KEYS[1], {})
  return answer
end
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. string.format('%d', now_ms), '+inf')) do
  local key = prefix .. ':worker:' .. id
  if is(key, 'hash') then
    local fields = redis.call('HMGET', key, 'info', 'state', 'load', 'lease_until_ms', 'residency_revision')
    if fields[1] then add(id, fields) end
  else
    add(key, {})
  end
end
return answer
--- placements
local answer = {string.format('%d', now_ms), is(KEYS[1], 'string') and redis.call('GET', KEYS[1]) or ''}
for i = 2, #KEYS do
  local found, all = {}, {}
  if is(KEYS[i], 'hash') then all = redis.call('HGETALL', KEYS[i]) else found = {'', ''} end
  for j = 1, #all, 2 do
    if redis.call('EXISTS', prefix .. ':worker:' .. all[j]) == 1 then
      found[#found + 1] = all[j]
      found[#found + 1] = all[j + 1]
    end
  end
  answer[#answer + 1] = found
end
return answer
--- tail
claim_stream(KEYS[1])
if redis.call('XLEN', KEYS[1]) == 0 then
  local id = redis.call('XADD', KEYS[1], '*', 'worker', '', 'changes', '[]')
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
  return id
end
return redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1][1]
--- changes
sweep(ARGV[4])
claim_stream(KEYS[1])
redis.call('PEXPIRE', KEYS[1], ARGV[4], 'GT')
local oldest = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)
local entries = redis.call('XRANGE', KEYS[1], '(' .. ARGV[2], '+', 'COUNT', ARGV[3])
return {string.format('%d', now_ms), oldest[1] and oldest[1][1] or '', entries}
--- touch_pool
claim(KEYS[1], 'zset')
redis.call('ZADD', KEYS[1], now_ms, ARGV[2])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now_ms - tonumber(ARGV[3]))
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1
--- residency
return is(KEYS[1], 'hash') and redis.call('HGETALL', KEYS[1]) or {'', ''}
