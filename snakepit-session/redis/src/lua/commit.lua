-- Changes a session, if it is what it was when it was loaded.
-- id, born, rev, the rev to give it, what it holds then, bytes, variables and programs more, most bytes in all, most entries
-- in the log, its most bytes, changes -> 'done', 'gone', 'changed' by somebody else, or 'full'
--
-- A rev is random: where a failover lost writes, no later one has the rev of a lost one. Each entry of the log has the rev of
-- the commit that wrote it (m) and of the one that wrote the entry before (p), so a reader notices that its past is another.
--
-- Changes: 'set' name, version to keep what it was as or nothing, variable
--          'unset' name, the variable as it was last
--          'forget' deep field
--          'put' name, program, data
--          'remove' name

local id, born, rev, next_rev, holds, bytes, variables, programs, max_bytes, max_length, max_size = unpack(ARGV, 1, 11)
local key, far = session(id), deep(id)
local head = redis.call('HMGET', key, 'born', 'rev', 'seq', 'ttl', 'watched', 'logged', 'mark')
if head[1] ~= born then
  return 'gone'
end
if head[2] ~= rev then
  return 'changed'
end
if tonumber(bytes) > 0 and total() + bytes > tonumber(max_bytes) then
  return 'full'
end
redis.call('HSET', held, id, holds)

-- Who watches reads the changes from a log. There is one only while somebody watches, and it is as long as a slow watcher
-- may fall behind.
local seq, entries = tonumber(head[3]), stream(born)
local is_watched = head[5] and tonumber(head[5]) > now()
local length = is_watched and redis.call('XLEN', entries) or 0
local size = length > 0 and tonumber(head[6] or 0) or 0
local mark = head[7] or '0'

local function append(variable)
  local before = mark
  seq, mark = seq + 1, next_rev
  if not is_watched then
    return
  end
  redis.call('XADD', entries, int(seq) .. '-0', 'v', variable, 'p', before, 'm', mark)
  length, size = length + 1, size + #variable
  while length > 1 and (length > tonumber(max_length) or size > tonumber(max_size)) do
    local oldest = redis.call('XRANGE', entries, '-', '+', 'COUNT', 1)[1]
    length, size = length - 1, size - #oldest[2][2]
    redis.call('XTRIM', entries, 'MAXLEN', int(length))
  end
end

local at = 12
local function argument()
  at = at + 1
  return ARGV[at - 1]
end

while at <= #ARGV do
  local change = argument()
  if change == 'set' then
    local name, keep, variable = argument(), argument(), argument()
    if keep ~= '' then
      redis.call('HSET', far, 'h:' .. keep .. ':' .. name, redis.call('HGET', key, 'v:' .. name))
    end
    redis.call('HSET', key, 'v:' .. name, variable)
    append(variable)
  elseif change == 'unset' then
    redis.call('HDEL', key, 'v:' .. argument())
    append(argument())
  elseif change == 'forget' then
    redis.call('HDEL', far, argument())
  elseif change == 'put' then
    local name = argument()
    redis.call('HSET', key, 'p:' .. name, argument())
    redis.call('HSET', far, 'd:' .. name, argument())
  elseif change == 'remove' then
    local name = argument()
    redis.call('HDEL', key, 'p:' .. name)
    redis.call('HDEL', far, 'd:' .. name)
  else
    error('unknown change ' .. change)
  end
end

redis.call('HSET', key, 'rev', next_rev, 'seq', int(seq), 'mark', mark, 'holds', holds, 'far', redis.call('HLEN', far))
count('bytes', tonumber(bytes))
count('variables', tonumber(variables))
count('programs', tonumber(programs))
renew(id, head[4])
if is_watched and seq > tonumber(head[3]) then
  redis.call('HSET', key, 'logged', int(size))
  redis.call('PEXPIREAT', entries, head[5])
  redis.call('PUBLISH', root .. ':updates', born)
end
return 'done'
