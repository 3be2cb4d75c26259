-- Reclaims expired sessions and, in the first call, global programs. Renewals do not update the queue; this script requeues
-- sessions that turn out to live longer. So it costs time only for sessions that are due.
-- number to visit, 'sweep', 'first' or 'next' -> {visited, expired sessions, expired programs, whether the indexes disagree
-- because of evictions}

local limit, which = unpack(ARGV)
make_room()
local time = now()
local surfaced = redis.call('ZRANGEBYSCORE', due, '-inf', int(time), 'LIMIT', 0, limit)
local expired = 0
for _, id in ipairs(surfaced) do
  local left = redis.call('PTTL', session(id))
  if left < 0 then
    retire(id, 'expired')
    expired = expired + 1
  else
    redis.call('ZADD', due, int(time + left + 1), id)
  end
end
local programs = which ~= 'next' and reclaim_globals() or 0
if which == 'sweep' then
  count('sweeps', 1)
end
local sessions = redis.call('ZCARD', ids)
local counted = redis.call('HMGET', totals, 'created', 'deleted', 'expired', 'torn')
local agree = not counted[4] and sessions == redis.call('ZCARD', due) and sessions == redis.call('HLEN', held)
  and sessions == (counted[1] or 0) - (counted[2] or 0) - (counted[3] or 0)
return { #surfaced, expired, programs, agree and 0 or 1 }
