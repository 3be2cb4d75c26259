-- Deletes a session.
-- id -> nothing, or {time left, meta, worker, held}

local id = ARGV[1]
local left = redis.call('PTTL', session(id))
if left < 0 then
  return false
end
local was = redis.call('HMGET', session(id), 'meta', 'worker')
local holds = redis.call('HGET', held, id)
retire(id, 'deleted')
return { left, was[1], was[2], holds }
