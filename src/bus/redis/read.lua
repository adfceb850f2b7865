-- Reads what is kept of a channel, in one moment.
--
-- KEYS, all of one slot: 1 the channel's stream, 2 its last id, 3 the epoch. ARGV: 1 the place
-- after which to read, or '' for nothing, 2 how many events at most, 3 milliseconds that the epoch
-- is remembered.
--
-- Answers the clock, the last id, the epoch, how many entries were read, and of each its id and its
-- message, '' where it has none. The last id is '' where there is none, and '?' where what is held
-- is no id.

local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

local epoch = redis.call('GET', KEYS[3])
if not epoch then
  -- One less: what is published in this millisecond is later.
  epoch = string.format('%.0f', now - 1)
  redis.call('SET', KEYS[3], epoch, 'PX', ARGV[3])
elseif redis.call('PTTL', KEYS[3]) < ARGV[3] / 2 then
  redis.call('PEXPIRE', KEYS[3], ARGV[3])
end

local function message(entry)
  for i = 1, #entry[2], 2 do
    if entry[2][i] == 'm' then return entry[2][i + 1] end
  end
  return ''
end

local held = redis.call('GET', KEYS[2])
local last = held and string.match(held, '^(%d+%-%d+) %d+ %d+')
if not last then
  local top = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
  -- What others put there may bear any id.
  local own = top and string.find(message(top), '~' .. top[1] .. '","prev":"', 1, true)
  last = own and top[1] or held and '?' or ''
end

local entries = {}
if ARGV[1] ~= '' then
  entries = redis.call('XRANGE', KEYS[1], '(' .. ARGV[1], '+', 'COUNT', ARGV[2])
end
local answer = {string.format('%.0f', now), last, epoch, tostring(#entries)}
for _, entry in ipairs(entries) do
  answer[#answer + 1] = entry[1]
  answer[#answer + 1] = message(entry)
end
return answer
