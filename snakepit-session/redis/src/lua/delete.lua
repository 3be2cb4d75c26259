-- Deletes a session.
-- id -> nil, or {remaining lifetime, meta, worker, usage}

local id = ARGV[1]
local left = redis.call('PTTL', session_key(id))
if left < 0 then
  return false
end
local fields = redis.call('HMGET', session_key(id), 'meta', 'worker')
local usage = usage_of(id)
remove_session(id, usage and 'deleted' or 'expired')
return usage and { left, fields[1], fields[2], usage } or false
