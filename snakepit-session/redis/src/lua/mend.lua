-- Repairs sessions after evictions: complete sessions are in all indexes afterwards, and incomplete ones are removed.
-- ids -> number of lost sessions

make_room()
local lost = 0
for _, id in ipairs(ARGV) do
  local lives = redis.call('EXISTS', session(id)) == 1
  local holds = lives and what_is_held(id)
  if holds then
    put_in_indexes(id, holds)
  elseif lives or redis.call('HEXISTS', held, id) == 1
    or redis.call('ZSCORE', ids, id) or redis.call('ZSCORE', due, id) then
    retire(id, 'expired')
    lost = lost + 1
  end
end
return lost
