-- Repairs sessions after evictions: adds complete sessions to all indexes, and removes incomplete ones.
-- ids -> number of lost sessions

make_room()
local lost = 0
for _, id in ipairs(ARGV) do
  local exists = redis.call('EXISTS', session_key(id)) == 1
  local usage = exists and usage_of(id)
  if usage then
    restore_indexes(id, usage)
  elseif exists or redis.call('HEXISTS', usages, id) == 1
    or redis.call('ZSCORE', ids, id) or redis.call('ZSCORE', due, id) then
    remove_session(id, 'expired')
    lost = lost + 1
  end
end
return lost
