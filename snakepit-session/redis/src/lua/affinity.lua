-- Stores the worker that served a session last, without renewing the session.
-- id, worker -> whether the session is live

local id, worker = unpack(ARGV)
if redis.call('EXISTS', session_key(id)) == 0 then
  return 0
end
redis.call('HSET', session_key(id), 'worker', worker)
return 1
