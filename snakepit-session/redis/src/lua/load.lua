-- Renews a session and reads the state that a change needs.
-- id, watch lease of a new watch or '', prefix of fields to read or ''
-- -> nil, or {rev, seq, ttl, usage, total bytes, {values of these fields}, mark}

local id, watched, prefix = unpack(ARGV)
local key = session_key(id)
local head = redis.call('HMGET', key, 'rev', 'seq', 'ttl', 'mark')
if not head[1] then
  return false
end
local usage = usage_of(id)
if not usage then
  make_room()
  remove_session(id, 'expired')
  return false
end
if redis.call('HEXISTS', usages, id) == 0 then
  restore_indexes(id, usage)
end
if watched ~= '' then
  redis.call('HSET', key, 'watched', int(now() + watched))
end
renew(id, head[3])
return {
  tonumber(head[1]), tonumber(head[2]), tonumber(head[3]),
  usage, total(), prefix ~= '' and fetch_all(key, prefix) or {}, tonumber(head[4] or 0),
}
