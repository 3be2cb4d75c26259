-- Lists sessions by id, without renewing them. Those of which Redis evicted a part are passed over.
-- the id before, how many ids to look at -> {how many there were, the last of them, those that live:
-- {id, time left, meta, worker, held}...}

local after, limit = unpack(ARGV)
local from = after == '' and '-' or '(' .. after
local page = redis.call('ZRANGEBYLEX', ids, from, '+', 'LIMIT', 0, limit)
local found = {}
for _, id in ipairs(page) do
  local left = redis.call('PTTL', session(id))
  if left >= 0 then
    local is = redis.call('HMGET', session(id), 'meta', 'worker', 'holds', 'far')
    local holds = what_is_held(id, is[3], is[4])
    if holds then
      found[#found + 1] = { id, left, is[1], is[2], holds }
    end
  end
end
return { #page, page[#page] or '', found }
