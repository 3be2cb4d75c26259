-- Lists global programs, without renewing them.
-- -> {info}...

local found = {}
for _, name in ipairs(redis.call('HKEYS', globals)) do
  found[#found + 1] = redis.call('HGET', global_key(name), 'info') or nil
end
return found
