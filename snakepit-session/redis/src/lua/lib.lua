-- The common part, which precedes each script.
--
-- All keys begin with the same root in braces, so they share one cluster slot, and scripts may derive the names of keys.
-- If Redis is out of memory, it rejects a script at its first write or not at all. Scripts are therefore atomic.

local root = KEYS[1]
local ids, due, usages = root .. ':ids', root .. ':due', root .. ':held'
local totals, globals, event_log = root .. ':totals', root .. ':globals', root .. ':log'

local function session_key(id)
  return root .. ':s:' .. id
end

local function far_key(id)
  return root .. ':d:' .. id
end

local function log_key(incarnation)
  return root .. ':w:' .. incarnation
end

local function global_key(name)
  return root .. ':g:' .. name
end

local function int(number)
  return string.format('%.0f', number)
end

-- The current time in milliseconds.
local function now()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- Sets the TTL of a key in milliseconds. Subtracts one, because Redis keeps a key until its last millisecond has passed.
local function expire(key, ttl)
  redis.call('PEXPIRE', key, int(ttl - 1))
end

local function renew(id, ttl)
  expire(session_key(id), ttl)
  expire(far_key(id), ttl)
end

-- Call this first in a script that frees memory. Redis allows further writes after a first write that does not need memory.
local function make_room()
  redis.call('UNLINK', root .. ':none')
end

-- Adds a session to the indexes that have lost it to eviction.
local function restore_indexes(id, usage)
  make_room()
  redis.call('HSETNX', usages, id, usage)
  redis.call('ZADD', ids, 0, id)
  redis.call('ZADD', due, 'NX', int(now()), id)
end

local function count(name, by)
  if by ~= 0 then
    redis.call('HINCRBY', totals, name, int(by))
  end
end

-- The total size of all sessions and global programs in bytes. It is negative only if Redis evicted the counter.
local function total()
  return math.max(0, tonumber(redis.call('HGET', totals, 'bytes') or 0))
end

-- The usage of a session according to its own hash (`holds`, `far`). `counted` is the rev of the commit that wrote both. Hosts of
-- earlier versions commit without updating them, which makes both stale.
local function recorded_usage(id)
  local rev, counted, usage, far = unpack(redis.call('HMGET', session_key(id), 'rev', 'counted', 'holds', 'far'))
  if not counted or counted ~= rev then
    return nil, 0
  end
  return usage, tonumber(far or 0)
end

-- The usage of a session, from the index or else from its hash. Nil if Redis evicted a part of the session, which makes the
-- session unusable.
local function usage_of(id)
  local usage, far = recorded_usage(id)
  if far > 0 and redis.call('EXISTS', far_key(id)) == 0 then
    return nil
  end
  return redis.call('HGET', usages, id) or usage or nil
end

-- Reads fields of a hash in batches, because the number of arguments of a command is limited.
local function fetch(key, fields)
  local values = {}
  for first = 1, #fields, 1000 do
    local last = math.min(first + 999, #fields)
    local batch = redis.call('HMGET', key, unpack(fields, first, last))
    for at = 1, last - first + 1 do
      values[first + at - 1] = batch[at]
    end
  end
  return values
end

-- The values of all fields of a hash with this prefix.
local function fetch_all(key, prefix)
  local fields = {}
  for _, field in ipairs(redis.call('HKEYS', key)) do
    if field:sub(1, #prefix) == prefix then
      fields[#fields + 1] = field
    end
  end
  return fetch(key, fields)
end

local function publish_event(kind, id, incarnation)
  local number = redis.call('HINCRBY', totals, 'events', 1)
  local at = redis.call('XADD', event_log, 'MAXLEN', '~', 1024, '*', 'n', number, 'kind', kind, 'born', incarnation, 'id', id)
  redis.call('PUBLISH', root .. ':events', at .. ' ' .. number .. ' ' .. kind .. ' ' .. incarnation .. ' ' .. id)
end

-- Removes a session, or the remains of an expired one, and subtracts its usage from the totals. Its log remains until the watching
-- hosts have read it.
local function remove_session(id, kind)
  local usage = redis.call('HGET', usages, id) or recorded_usage(id)
  if not usage then
    usage = '0 0 0 -'
    redis.call('HSET', totals, 'torn', 1)
  end
  local bytes, variables, programs, incarnation = usage:match('(%d+) (%d+) (%d+) (%S+)')
  redis.call('UNLINK', session_key(id), far_key(id))
  count(kind, 1)
  count('bytes', -bytes)
  count('variables', -variables)
  count('programs', -programs)
  redis.call('HDEL', usages, id)
  redis.call('ZREM', ids, id)
  redis.call('ZREM', due, id)
  publish_event(kind, id, incarnation)
end

-- Reclaims expired global programs. Visits all of them, because their number is small.
local function reclaim_globals()
  local programs, reclaimed = redis.call('HGETALL', globals), 0
  for at = 1, #programs, 2 do
    local name, bytes = programs[at], programs[at + 1]
    if redis.call('EXISTS', global_key(name)) == 0 then
      redis.call('HDEL', globals, name)
      count('bytes', -bytes)
      reclaimed = reclaimed + 1
    end
  end
  return reclaimed
end
