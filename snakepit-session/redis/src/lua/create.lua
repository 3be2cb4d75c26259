-- Finds or creates a session.
-- id, born, ttl, meta, bytes, max sessions, max total bytes -> {'found', 0, meta, worker, usage}
-- or {'made', 0}, {'sessions', 0} (limit), {'bytes', total} (limit), each with three nils

local id, born, ttl, meta, bytes, max_sessions, max_bytes = unpack(ARGV)
local key = session(id)
local found = redis.call('HMGET', key, 'ttl', 'meta', 'worker')
local holds = found[1] and what_is_held(id)
if holds then
  renew(id, found[1])
  return { 'found', 0, found[2], found[3], holds }
end
if found[1] or redis.call('HEXISTS', held, id) == 1 then
  retire(id, 'expired')
end
if redis.call('ZCARD', ids) >= tonumber(max_sessions) then
  return { 'sessions', 0, false, false, false }
end
local size = total() + bytes
if size > tonumber(max_bytes) then
  return { 'bytes', int(size), false, false, false }
end
holds = bytes .. ' 0 0 ' .. born
redis.call('HSET', key, 'born', born, 'rev', 0, 'seq', 0, 'ttl', ttl, 'meta', meta, 'holds', holds, 'counted', 0)
redis.call('HSET', held, id, holds)
redis.call('ZADD', ids, 0, id)
redis.call('ZADD', due, int(now() + ttl), id)
count('created', 1)
count('bytes', bytes)
announce('created', id, born)
expire(key, ttl)
return { 'made', 0, false, false, false }
