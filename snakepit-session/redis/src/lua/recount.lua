-- Replaces counters that Redis evicted.
-- bytes, variables, programs

make_room()
redis.call('HSET', totals, 'bytes', ARGV[1], 'variables', ARGV[2], 'programs', ARGV[3])
local ended = redis.call('HMGET', totals, 'deleted', 'expired')
redis.call('HSET', totals, 'created', redis.call('ZCARD', ids) + (ended[1] or 0) + (ended[2] or 0))
redis.call('HDEL', totals, 'torn')
return 1
