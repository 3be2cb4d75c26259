-- Deletes a session.
-- id -> nil, or {remaining lifetime, meta, worker, usage}

local id = ARGV[1]
local left = redis.call('PTTL', session(id))
if left < 0 then
  return false
end
local was = redis.call('HMGET', session(id), 'meta', 'worker')
local holds = what_is_held(id)
retire(id, holds and 'deleted' or 'expired')
return holds and { left, was[1], was[2], holds } or false
