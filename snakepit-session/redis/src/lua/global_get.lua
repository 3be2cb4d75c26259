-- Reads a global program and renews it.
-- name -> nil, or {info, data}

local name = ARGV[1]
local found = redis.call('HMGET', global_key(name), 'info', 'data', 'ttl')
if not found[1] then
  return false
end
expire(global_key(name), found[3])
return { found[1], found[2] }
