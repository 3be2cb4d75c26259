-- Reads on what changed in watched sessions, and says that they are still watched. Does not renew them.
-- how long they are watched, about how many bytes to read, and for each: id, born, the last number read
-- -> for each {time left or less than 0, the last number there is, whether there is more, {number, variable}...}

local lease, budget = tonumber(ARGV[1]), tonumber(ARGV[2])
local time = now()

local function follow(id, born, seen)
  local head = redis.call('HMGET', session(id), 'born', 'seq', 'watched')
  local left, seq = -1, seen
  if head[1] == born then
    left, seq = redis.call('PTTL', session(id)), tonumber(head[2])
    if not head[3] or head[3] - time < lease * 2 / 3 then
      redis.call('HSET', session(id), 'watched', int(time + lease))
      expire(stream(born), lease)
    end
  end
  local found, last, more = {}, seen, true
  while more and budget > 0 do
    local entries = redis.call('XRANGE', stream(born), '(' .. int(last) .. '-0', '+', 'COUNT', 16)
    for _, entry in ipairs(entries) do
      last = tonumber(entry[1]:match('^%d+'))
      found[#found + 1] = { last, entry[2][2] }
      budget = budget - #entry[2][2]
    end
    more = #entries == 16
  end
  -- Nobody had said for too long that the session is watched, so the end of the log is missing. What the variables are
  -- now is the last that happened to them.
  if not more and last < seq then
    for _, variable in ipairs(fetch_all(session(id), 'v:')) do
      local number = tonumber(variable:match('^%d+'))
      if number > last then
        found[#found + 1] = { number, variable }
      end
    end
  end
  return { left, seq, more and 1 or 0, found }
end

local answers = {}
for at = 3, #ARGV, 3 do
  answers[#answers + 1] = follow(ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 2]))
end
return answers
