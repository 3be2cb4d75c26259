-- Renews a session and reads the state that a change needs.
-- id, lease of a new watch or '', prefix of fields to read or ''
-- -> nil, or {rev, seq, ttl, usage, total bytes, {values of these fields}, mark}

local id, watched, prefix = unpack(ARGV)
local key = session(id)
local head = redis.call('HMGET', key, 'rev', 'seq', 'ttl', 'mark')
if not head[1] then
  return false
end
local holds = what_is_held(id)
if not holds then
  make_room()
  retire(id, 'expired')
  return false
end
if redis.call('HEXISTS', held, id) == 0 then
  put_in_indexes(id, holds)
end
if watched ~= '' then
  redis.call('HSET', key, 'watched', int(now() + watched))
end
renew(id, head[3])
return {
  tonumber(head[1]), tonumber(head[2]), tonumber(head[3]),
  holds, total(), prefix ~= '' and fetch_all(key, prefix) or {}, tonumber(head[4] or 0),
}
