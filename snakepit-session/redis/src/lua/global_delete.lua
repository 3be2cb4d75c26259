-- Deletes a global program.
-- name -> whether it existed

local name = ARGV[1]
if redis.call('EXISTS', global_key(name)) == 0 then
  return 0
end
redis.call('UNLINK', global_key(name))
count('bytes', -(redis.call('HGET', globals, name) or 0))
redis.call('HDEL', globals, name)
return 1
