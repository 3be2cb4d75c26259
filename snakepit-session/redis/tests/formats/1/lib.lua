-- What the scripts share; it stands before each of them.
--
-- All keys begin with one root in braces, so that they lie in one slot, and scripts may make names of keys from it.
-- Redis that is out of memory refuses a script at its first write or not at all: so each does all or nothing.

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

-- Lets a key live so many milliseconds. One less, because Redis keeps a key for the whole of its last millisecond.
local function expire(key, ttl)
  redis.call('PEXPIRE', key, int(ttl - 1))
end

local function renew(id, ttl)
  expire(session(id), ttl)
  expire(deep(id), ttl)
end

-- Before the writes of a script that makes room in all: Redis lets those go on that began with one that needs no memory.
local function make_room()
  redis.call('UNLINK', root .. ':none')
end

local function count(name, by)
  if by ~= 0 then
    redis.call('HINCRBY', totals, name, int(by))
  end
end

-- What all sessions and global programs hold, in bytes.
local function total()
  return tonumber(redis.call('HGET', totals, 'bytes') or 0)
end

-- Fields of a hash, however many: one command takes some thousands.
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

-- The values of all fields of a hash that begin like this.
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

-- Ends a session, which may have expired: what it held is written down apart from it. Its last changes stay until those
-- who watch it have read them.
local function retire(id, kind)
  local holds = redis.call('HGET', held, id) or '0 0 0 -'
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

-- Gives back what global programs held that expired. They are few.
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
