-- Reclaims sessions that expired and, the first time, global programs. Use does not move a session in the queue of what
-- is due: one that turns out to live longer is queued again, so this costs by what surfaces and not by what lives.
-- how many to look at, 'sweep', 'first' or 'next' -> {how many surfaced, sessions expired, programs expired, whether the
-- indexes do not agree: Redis evicted some of them}

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
