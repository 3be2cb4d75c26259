-- Commits changes to a session if its revision is unchanged.
-- id, incarnation, rev, new rev, new usage, growth in bytes, variables and programs, max total bytes, max entries and max
-- bytes of the log, changes -> 'done', 'ended', 'changed' (conflict), or 'full'
--
-- A rev is random, so that commits after a failover never reuse the rev of a lost commit. Each log entry contains the rev of
-- its commit (m) and that of the previous entry's commit (p), so that a reader detects lost commits.
--
-- Changes: 'set' name, version number of the previous state (to store it as an older version) or '', variable
--          'unset' name, the last state of the variable
--          'forget' field of the second hash, which is deleted
--          'put' name, program, data
--          'remove' name

local id, incarnation, rev, next_rev, usage = unpack(ARGV, 1, 5)
local bytes, variables, programs, max_bytes, max_length, max_size = unpack(ARGV, 6, 11)
local key, far = session_key(id), far_key(id)
local head = redis.call('HMGET', key, 'born', 'rev', 'seq', 'ttl', 'watched', 'logged', 'mark')
if head[1] ~= incarnation then
  return 'ended'
end
if head[2] ~= rev then
  return 'changed'
end
if tonumber(bytes) > 0 and total() + bytes > tonumber(max_bytes) then
  return 'full'
end
redis.call('HSET', usages, id, usage)

-- Hosts read the changes from a log. The log exists only while the session is watched. Its maximum length bounds how far a
-- watcher can fall behind.
local seq, entries = tonumber(head[3]), log_key(incarnation)
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
    local name, previous, variable = argument(), argument(), argument()
    if previous ~= '' then
      redis.call('HSET', far, 'h:' .. previous .. ':' .. name, redis.call('HGET', key, 'v:' .. name))
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

redis.call('HSET', key, 'rev', next_rev, 'seq', int(seq), 'mark', mark,
  'counted', next_rev, 'holds', usage, 'far', redis.call('HLEN', far))
count('bytes', tonumber(bytes))
count('variables', tonumber(variables))
count('programs', tonumber(programs))
renew(id, head[4])
if is_watched and seq > tonumber(head[3]) then
  redis.call('HSET', key, 'logged', int(size))
  redis.call('PEXPIREAT', entries, head[5])
  redis.call('PUBLISH', root .. ':updates', incarnation)
end
return 'done'
