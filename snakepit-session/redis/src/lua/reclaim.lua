-- Reclaims expired sessions and, in the first call, global programs. Renewals do not update the queue. Instead, this script
-- requeues due sessions that were renewed, so it visits only due sessions.
-- maximum number to visit, mode ('sweep', 'first' or 'next') -> {visited, expired sessions, expired programs, whether the indexes
-- disagree because of evictions}

local limit, mode = unpack(ARGV)
make_room()
local time = now()
local visited = redis.call('ZRANGEBYSCORE', due, '-inf', int(time), 'LIMIT', 0, limit)
local expired = 0
for _, id in ipairs(visited) do
  local left = redis.call('PTTL', session_key(id))
  if left < 0 then
    remove_session(id, 'expired')
    expired = expired + 1
  else
    redis.call('ZADD', due, int(time + left + 1), id)
  end
end
local programs = mode ~= 'next' and reclaim_globals() or 0
if mode == 'sweep' then
  count('sweeps', 1)
end
local sessions = redis.call('ZCARD', ids)
local counted = redis.call('HMGET', totals, 'created', 'deleted', 'expired', 'torn')
local agree = not counted[4] and sessions == redis.call('ZCARD', due) and sessions == redis.call('HLEN', usages)
  and sessions == (counted[1] or 0) - (counted[2] or 0) - (counted[3] or 0)
return { #visited, expired, programs, agree and 0 or 1 }
