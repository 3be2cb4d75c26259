-- Changes a session, if it is what it was when it was loaded.
-- id, born, rev, what it holds then, bytes, variables and programs more, most bytes in all, most entries in the log,
-- its most bytes, changes -> 'done', 'gone', 'changed' by somebody else, or 'full'
--
-- Changes: 'set' name, version to keep what it was as or nothing, variable
--          'unset' name, the variable as it was last
--          'forget' deep field
--          'put' name, program, data
--          'remove' name

local id, born, rev, holds, bytes, variables, programs, max_bytes, max_length, max_size = unpack(ARGV, 1, 10)
local key, far = session(id), deep(id)
local head = redis.call('HMGET', key, 'born', 'rev', 'seq', 'ttl', 'watched', 'logged')
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

local function append(variable)
  seq = seq + 1
  if not is_watched then
    return
  end
  redis.call('XADD', entries, int(seq) .. '-0', 'v', variable)
  length, size = length + 1, size + #variable
  while length > 1 and (length > tonumber(max_length) or size > tonumber(max_size)) do
    local oldest = redis.call('XRANGE', entries, '-', '+', 'COUNT', 1)[1]
    length, size = length - 1, size - #oldest[2][2]
    redis.call('XTRIM', entries, 'MAXLEN', int(length))
  end
end

local at = 11
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

redis.call('HSET', key, 'rev', int(rev + 1), 'seq', int(seq))
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
