-- Lists sessions by id, without renewing them. Skips sessions that lost a part to eviction.
-- id after which to start or '', number of ids to visit -> {number of ids, the last id, live sessions:
-- {id, remaining lifetime, meta, worker, usage}...}

local after, limit = unpack(ARGV)
local from = after == '' and '-' or '(' .. after
local page = redis.call('ZRANGEBYLEX', ids, from, '+', 'LIMIT', 0, limit)
local found = {}
for _, id in ipairs(page) do
  local left = redis.call('PTTL', session_key(id))
  if left >= 0 then
    local fields = redis.call('HMGET', session_key(id), 'meta', 'worker')
    local usage = usage_of(id)
    if usage then
      found[#found + 1] = { id, left, fields[1], fields[2], usage }
    end
  end
end
return { #page, page[#page] or '', found }
