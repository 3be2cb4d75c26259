-- Renews a session and reads a variable with its newest versions.
-- id, number of versions or 0 for all, name -> nil, or {variable or nil, {older versions}}

local id, limit, name = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local ttl = redis.call('HGET', session_key(id), 'ttl')
if not ttl then
  return false
end
if not usage_of(id) then
  make_room()
  remove_session(id, 'expired')
  return false
end
renew(id, ttl)
local variable, fields = redis.call('HGET', session_key(id), 'v:' .. name), {}
if variable then
  local oldest, version = variable:match('^%d+ (%d+) (%d+)\n')
  if limit > 0 then
    oldest = math.max(oldest, version - limit + 1)
  end
  for older = version - 1, oldest, -1 do
    fields[#fields + 1] = 'h:' .. int(older) .. ':' .. name
  end
end
return { variable, fetch(far_key(id), fields) }
