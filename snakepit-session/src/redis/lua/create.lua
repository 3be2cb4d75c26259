-- Finds a session or makes it.
-- id, born, ttl, meta, bytes, most sessions, most bytes in all -> {'found', 0, meta, worker, held}
-- or {'made', 0} or {'sessions', 0} or {'bytes', what all would hold}, each with three times nothing

local id, born, ttl, meta, bytes, max_sessions, max_bytes = unpack(ARGV)
local key = session(id)
local found = redis.call('HMGET', key, 'ttl', 'meta', 'worker')
if found[1] then
  renew(id, found[1])
  return { 'found', 0, found[2], found[3], redis.call('HGET', held, id) }
end
if redis.call('HEXISTS', held, id) == 1 then
  retire(id, 'expired')
end
if redis.call('ZCARD', ids) >= tonumber(max_sessions) then
  return { 'sessions', 0, false, false, false }
end
local size = total() + bytes
if size > tonumber(max_bytes) then
  return { 'bytes', int(size), false, false, false }
end
redis.call('HSET', key, 'born', born, 'rev', 0, 'seq', 0, 'ttl', ttl, 'meta', meta)
redis.call('HSET', held, id, bytes .. ' 0 0 ' .. born)
redis.call('ZADD', ids, 0, id)
redis.call('ZADD', due, int(now() + ttl), id)
count('created', 1)
count('bytes', bytes)
announce('created', id, born)
expire(key, ttl)
return { 'made', 0, false, false, false }
