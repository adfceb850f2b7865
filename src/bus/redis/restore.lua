-- Puts an event back that was acknowledged and that Redis may have lost since.
--
-- KEYS, all of one slot: 1 the channel's stream, 2 its last id, 3 the epoch. ARGV: 1 the channel,
-- 2 the event's id, 3 the one before it, 4 its message or '' if it is not at hand any more,
-- 5 events and 6 milliseconds that the channel keeps, 7 milliseconds that its last id is remembered,
-- 8 `1` not to wait for the event before it.
--
-- Answers `there`; `older` than all data, so that everyone is told anyway; `back`; `wait` for what
-- another replica may put back before it; or `lost`: later events do not show that it is missing.

local id, prev, message = ARGV[2], ARGV[3], ARGV[4]

local function parts(of)
  local ms, n = string.match(of, '^(%d+)%-(%d+)')
  return tonumber(ms), tonumber(n)
end

local function less(a, b)
  local ams, an = parts(a)
  local bms, bn = parts(b)
  return ams < bms or ams == bms and an < bn
end

local function text(entry)
  for i = 1, #entry[2], 2 do
    if entry[2][i] == 'm' then return entry[2][i + 1] end
  end
  return ''
end

-- The id before this entry; nil where others put it there.
local function before(entry)
  local named, prev = string.match(text(entry), '~(%d+%-%d+)","prev":"[^"~]*~(%d+%-%d+)"')
  return named == entry[1] and prev or nil
end

local epoch = redis.call('GET', KEYS[3])
if not epoch or tonumber(epoch) >= parts(id) then return 'older' end
if #redis.call('XRANGE', KEYS[1], id, id) > 0 then return 'there' end

local held = redis.call('GET', KEYS[2])
local last, sum, base, void
if held then last, sum, base, void = string.match(held, '^(%d+%-%d+) (%d+) (%d+) ?(%S*)$') end
if not last then
  local top = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
  last = top and before(top) and top[1] or '0-0'
end

if not less(last, id) then
  -- It is there no more, or never was. An event that names it, or a later one, as the one before it
  -- proves the first, or shows the hole; so does a stream that is empty after it.
  local after = redis.call('XRANGE', KEYS[1], '(' .. id, '+', 'COUNT', 1)[1]
  if not after then return 'there' end
  local shown = before(after)
  if shown and not less(shown, id) then return 'there' end
  for _, entry in ipairs(redis.call('XRANGE', KEYS[1], '(' .. id, '+')) do
    shown = shown or before(entry)
    if shown and not less(shown, id) then return 'there' end
    -- It has been said before.
    if string.find(text(entry), '{"belfry":{"v":1,"loss":true', 1, true) == 1 then return 'there' end
  end
  return shown and 'lost' or 'there'
end

if message == '' then return 'lost' end
if prev ~= last and ARGV[8] ~= '1' then return 'wait' end
local total = (tonumber(sum) or 0) + #message
local added = redis.pcall(
  'XADD', KEYS[1], 'MAXLEN', '~', ARGV[5], id, 'c', string.format('%.0f', total), 'm', message
)
if type(added) == 'table' and added.err then
  -- A stream that has given out later ids does not take it.
  if string.find(added.err, 'equal or smaller', 1, true) then return 'lost' end
  return added
end
redis.call('PEXPIRE', KEYS[1], ARGV[6])
local line = string.format('%s %.0f %.0f %s', id, total, tonumber(base) or 0, void or '')
redis.call('SET', KEYS[2], line, 'PX', ARGV[7])
redis.call('PUBLISH', ARGV[1], message)
return 'back'
