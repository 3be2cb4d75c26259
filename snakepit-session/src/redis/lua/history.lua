-- Uses a session: renews it and reads variables with their newest versions.
-- id, how many versions, names -> nothing, or {variable or none, {older versions}} for each name

local id, limit = ARGV[1], tonumber(ARGV[2])
local ttl = redis.call('HGET', session(id), 'ttl')
if not ttl then
  return false
end
renew(id, ttl)
local found = {}
for at = 3, #ARGV do
  local name = ARGV[at]
  local variable, fields = redis.call('HGET', session(id), 'v:' .. name), {}
  if variable then
    local oldest, version = variable:match('^%d+ (%d+) (%d+)\n')
    if limit > 0 then
      oldest = math.max(oldest, version - limit + 1)
    end
    for older = version - 1, oldest, -1 do
      fields[#fields + 1] = 'h:' .. int(older) .. ':' .. name
    end
  end
  found[#found + 1] = { variable, fetch(deep(id), fields) }
end
return found
