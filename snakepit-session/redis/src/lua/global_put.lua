-- Stores a global program.
-- name, info, data, ttl, bytes, max programs, max total bytes -> {'new' or 'existing', 0}, {'programs', 0} (limit),
-- or {'bytes', total} (limit)

local name, info, data, ttl, bytes, max_programs, max_bytes = unpack(ARGV)
local lives = redis.call('EXISTS', global_key(name)) == 1
if not lives then
  reclaim_globals()
  if redis.call('HLEN', globals) >= tonumber(max_programs) then
    return { 'programs', 0 }
  end
end
local more = bytes - (redis.call('HGET', globals, name) or 0)
if more > 0 and total() + more > tonumber(max_bytes) then
  return { 'bytes', int(total() + more) }
end
redis.call('HSET', globals, name, bytes)
redis.call('HSET', global_key(name), 'info', info, 'data', data, 'ttl', ttl)
expire(global_key(name), ttl)
count('bytes', more)
return { lives and 'existing' or 'new', 0 }
