-- The common part, which precedes each script.
--
-- All keys begin with one root in braces, so they are in one cluster slot, and scripts may derive the names of keys.
-- If Redis is out of memory, it rejects a script at the first write or not at all, so scripts are atomic.

local root = KEYS[1]
local ids, due, held = root .. ':ids', root .. ':due', root .. ':held'
local totals, globals, log = root .. ':totals', root .. ':globals', root .. ':log'

local function session(id)
  return root .. ':s:' .. id
end

local function deep(id)
  return root .. ':d:' .. id
end

local function stream(born)
  return root .. ':w:' .. born
end

local function global(name)
  return root .. ':g:' .. name
end

local function int(number)
  return string.format('%.0f', number)
end

-- The time in milliseconds.
local function now()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- Sets the TTL of a key in milliseconds. Subtracts one, because Redis keeps a key for the whole of its last millisecond.
local function expire(key, ttl)
  redis.call('PEXPIRE', key, int(ttl - 1))
end

local function renew(id, ttl)
  expire(session(id), ttl)
  expire(deep(id), ttl)
end

-- Call this first in a script that frees memory. Redis allows further writes after a first write that does not need memory.
local function make_room()
  redis.call('UNLINK', root .. ':none')
end

-- Adds a session to the indexes that have lost it to eviction.
local function put_in_indexes(id, holds)
  make_room()
  redis.call('HSETNX', held, id, holds)
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

-- The usage of a session as its own hash records it (`holds`, `far`). `counted` is the rev of the commit that wrote both:
-- hosts of earlier versions commit without it, which makes both stale.
local function own_usage(id)
  local rev, counted, holds, far = unpack(redis.call('HMGET', session(id), 'rev', 'counted', 'holds', 'far'))
  if not counted or counted ~= rev then
    return nil, 0
  end
  return holds, tonumber(far or 0)
end

-- The usage of a session, from the index or else from its hash. Nil if Redis evicted a part of the session, which is then
-- lost.
local function what_is_held(id)
  local holds, far = own_usage(id)
  if far > 0 and redis.call('EXISTS', deep(id)) == 0 then
    return nil
  end
  return redis.call('HGET', held, id) or holds or nil
end

-- Reads any number of fields of a hash in batches, because the arguments of one command are limited.
local function fetch(key, fields)
  local values = {}
  for first = 1, #fields, 1000 do
    local last = math.min(first + 999, #fields)
    local some = redis.call('HMGET', key, unpack(fields, first, last))
    for at = 1, last - first + 1 do
      values[first + at - 1] = some[at]
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

local function announce(kind, id, born)
  local number = redis.call('HINCRBY', totals, 'events', 1)
  local at = redis.call('XADD', log, 'MAXLEN', '~', 1024, '*', 'n', number, 'kind', kind, 'born', born, 'id', id)
  redis.call('PUBLISH', root .. ':events', at .. ' ' .. number .. ' ' .. kind .. ' ' .. born .. ' ' .. id)
end

-- Ends a session, which may have expired already, because its usage is stored separately. Its log remains until the
-- watching hosts have read it.
local function retire(id, kind)
  local holds = redis.call('HGET', held, id) or own_usage(id)
  if not holds then
    holds = '0 0 0 -'
    redis.call('HSET', totals, 'torn', 1)
  end
  local bytes, variables, programs, born = holds:match('(%d+) (%d+) (%d+) (%S+)')
  redis.call('UNLINK', session(id), deep(id))
  count(kind, 1)
  count('bytes', -bytes)
  count('variables', -variables)
  count('programs', -programs)
  redis.call('HDEL', held, id)
  redis.call('ZREM', ids, id)
  redis.call('ZREM', due, id)
  announce(kind, id, born)
end

-- Reclaims expired global programs. They are few.
local function reclaim_globals()
  local programs, reclaimed = redis.call('HGETALL', globals), 0
  for at = 1, #programs, 2 do
    local name, bytes = programs[at], programs[at + 1]
    if redis.call('EXISTS', global(name)) == 0 then
      redis.call('HDEL', globals, name)
      count('bytes', -bytes)
      reclaimed = reclaimed + 1
    end
  end
  return reclaimed
end
