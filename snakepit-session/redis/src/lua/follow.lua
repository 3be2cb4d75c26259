-- Reads the changes of watched sessions and renews the watch leases, but not the sessions.
-- watch lease, approximate max bytes, and for each session: id, incarnation, the number after which to read or '' for the current
-- variables
-- -> for each session {remaining lifetime (negative if it ended), latest number, its mark, whether more changes follow,
-- {number, variable, mark of the predecessor or -1 if unknown, mark}...}

local watch_lease, budget = tonumber(ARGV[1]), tonumber(ARGV[2])
local time = now()

local function follow(id, incarnation, after)
  local head = redis.call('HMGET', session_key(id), 'born', 'seq', 'watched', 'mark')
  local last = tonumber(after) or -1
  local left, seq, mark = -1, math.max(last, 0), 0
  if head[1] == incarnation then
    left, seq, mark = redis.call('PTTL', session_key(id)), tonumber(head[2]), tonumber(head[4] or 0)
    if not head[3] or head[3] - time < watch_lease * 2 / 3 then
      make_room()
      redis.call('HSET', session_key(id), 'watched', int(time + watch_lease))
      expire(log_key(incarnation), watch_lease)
    end
  end
  local found, more = {}, after ~= ''
  while more and budget > 0 do
    local entries = redis.call('XRANGE', log_key(incarnation), '(' .. int(last) .. '-0', '+', 'COUNT', 16)
    for _, entry in ipairs(entries) do
      local fields = entry[2]
      last = tonumber(entry[1]:match('^%d+'))
      found[#found + 1] = { last, fields[2], tonumber(fields[4] or 0), tonumber(fields[6] or 0) }
      budget = budget - #fields[2]
    end
    more = #entries == 16
  end
  -- Read the current variables if the reader requested them, or if the watch lease had expired and the log is incomplete. The current
  -- state of a variable is its last change.
  if not more and left >= 0 and last < seq then
    -- If earlier sessions used up the budget, the next call reads this one, because its variables may be large.
    more = budget <= 0
    for _, variable in ipairs(more and {} or fetch_all(session_key(id), 'v:')) do
      budget = budget - #variable
      local number = tonumber(variable:match('^%d+'))
      if number > last then
        found[#found + 1] = { number, variable, -1, 0 }
      end
    end
  end
  return { left, seq, mark, more and 1 or 0, found }
end

local answers = {}
for at = 3, #ARGV, 3 do
  answers[#answers + 1] = follow(ARGV[at], ARGV[at + 1], ARGV[at + 2])
end
return answers
