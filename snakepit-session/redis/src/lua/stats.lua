-- Counts. -> {created, deleted, expired, sweeps, sessions, variables, programs, bytes}

local counted = redis.call('HMGET', totals, 'created', 'deleted', 'expired', 'sweeps', 'variables', 'programs', 'bytes')
for at = 1, 7 do
  -- A counter is negative only if Redis evicted it.
  counted[at] = math.max(0, tonumber(counted[at] or 0))
end
local created, deleted, expired, sweeps, variables, programs, bytes = unpack(counted)
programs = programs + redis.call('HLEN', globals)
return { created, deleted, expired, sweeps, redis.call('ZCARD', ids), variables, programs, bytes }
