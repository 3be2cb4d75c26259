-- Recomputes the counters after evictions. Being atomic, it excludes concurrent commits. It blocks Redis for about a second per
-- million sessions.

make_room()
local bytes, variables, programs = 0, 0, 0
for _, usage in ipairs(redis.call('HVALS', usages)) do
  local some_bytes, some_variables, some_programs = usage:match('(%d+) (%d+) (%d+)')
  bytes = bytes + (some_bytes or 0)
  variables = variables + (some_variables or 0)
  programs = programs + (some_programs or 0)
end
for _, some_bytes in ipairs(redis.call('HVALS', globals)) do
  bytes = bytes + some_bytes
end
redis.call('HSET', totals, 'bytes', int(bytes), 'variables', int(variables), 'programs', int(programs))
local ended = redis.call('HMGET', totals, 'deleted', 'expired')
redis.call('HSET', totals, 'created', int(redis.call('ZCARD', ids) + (ended[1] or 0) + (ended[2] or 0)))
redis.call('HDEL', totals, 'torn')
return 1
