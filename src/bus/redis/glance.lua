-- Looks where channels stand, all at one moment.
--
-- KEYS: 1 the epoch, then for each channel its stream and its last id. ARGV: 1 milliseconds that the
-- epoch is remembered.
--
-- Answers the clock, the epoch, and for each channel its last id, '' where there is none, and '?' where
-- what is held is no id; or `!` and why it cannot be known, which does not concern the others.

local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

local epoch = redis.call('GET', KEYS[1])
if not epoch then
  -- One less: what is published in this millisecond is later.
  epoch = string.format('%.0f', now - 1)
  redis.call('SET', KEYS[1], epoch, 'PX', ARGV[1])
elseif redis.call('PTTL', KEYS[1]) < ARGV[1] / 2 then
  redis.call('PEXPIRE', KEYS[1], ARGV[1])
end

-- What others put there may bear any id.
local function is_own(entry)
  for i = 1, #entry[2], 2 do
    if entry[2][i] == 'm' then
      return string.find(entry[2][i + 1], '~' .. entry[1] .. '","prev":"', 1, true)
    end
  end
end

local function last_of(stream, last)
  local held = redis.call('GET', last)
  local id = held and string.match(held, '^(%d+%-%d+) %d+ %d+')
  if id then return id end
  local top = redis.call('XREVRANGE', stream, '+', '-', 'COUNT', 1)[1]
  return top and is_own(top) and top[1] or held and '?' or ''
end

local answer = {string.format('%.0f', now), epoch}
for i = 2, #KEYS, 2 do
  local ok, last = pcall(last_of, KEYS[i], KEYS[i + 1])
  -- Redis 7 hands the text of the error on, earlier ones the reply.
  if not ok then last = '!' .. (type(last) == 'table' and last.err or tostring(last)) end
  answer[#answer + 1] = last or ''
end
return answer
