-- Uses a session: renews it and reads what else is needed to change it.
-- id, how long it is watched or nothing, what fields to read begin with or nothing
-- -> nothing, or {rev, seq, ttl, held, bytes in all, {values of these fields}}

local id, watched, prefix = unpack(ARGV)
local key = session(id)
local head = redis.call('HMGET', key, 'rev', 'seq', 'ttl')
if not head[1] then
  return false
end
if watched ~= '' then
  redis.call('HSET', key, 'watched', int(now() + watched))
end
renew(id, head[3])
return {
  tonumber(head[1]), tonumber(head[2]), tonumber(head[3]),
  redis.call('HGET', held, id), total(), prefix ~= '' and fetch_all(key, prefix) or {},
}
