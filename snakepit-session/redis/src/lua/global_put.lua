-- Stores a global program.
-- name, info, data, ttl, bytes, max programs, max total bytes -> {'new' or 'existing', 0}, {'programs', 0} (limit),
-- or {'bytes', total} (limit)

local name, info, data, ttl, bytes, max_programs, max_bytes = unpack(ARGV)
local exists = redis.call('EXISTS', global_key(name)) == 1
if not exists then
  reclaim_globals()
  if redis.call('HLEN', globals) >= tonumber(max_programs) then
    return { 'programs', 0 }
  end
end
local growth = bytes - (redis.call('HGET', globals, name) or 0)
if growth > 0 and total() + growth > tonumber(max_bytes) then
  return { 'bytes', int(total() + growth) }
end
redis.call('HSET', globals, name, bytes)
redis.call('HSET', global_key(name), 'info', info, 'data', data, 'ttl', ttl)
expire(global_key(name), ttl)
count('bytes', growth)
return { exists and 'existing' or 'new', 0 }
