-- Finds or creates a session.
-- id, incarnation, ttl, meta, bytes, max sessions, max total bytes -> {'found', 0, meta, worker, usage}
-- or {'created', 0}, {'sessions', 0} (limit), {'bytes', total} (limit), each with three nils

local id, incarnation, ttl, meta, bytes, max_sessions, max_bytes = unpack(ARGV)
local key = session_key(id)
local found = redis.call('HMGET', key, 'ttl', 'meta', 'worker')
local usage = found[1] and usage_of(id)
if usage then
  renew(id, found[1])
  return { 'found', 0, found[2], found[3], usage }
end
if found[1] or redis.call('HEXISTS', usages, id) == 1 then
  remove_session(id, 'expired')
end
if redis.call('ZCARD', ids) >= tonumber(max_sessions) then
  return { 'sessions', 0, false, false, false }
end
local size = total() + bytes
if size > tonumber(max_bytes) then
  return { 'bytes', int(size), false, false, false }
end
usage = bytes .. ' 0 0 ' .. incarnation
redis.call('HSET', key, 'born', incarnation, 'rev', 0, 'seq', 0, 'ttl', ttl, 'meta', meta, 'holds', usage, 'counted', 0)
redis.call('HSET', usages, id, usage)
redis.call('ZADD', ids, 0, id)
redis.call('ZADD', due, int(now() + ttl), id)
count('created', 1)
count('bytes', bytes)
publish_event('created', id, incarnation)
expire(key, ttl)
return { 'created', 0, false, false, false }
