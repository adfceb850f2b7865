-- Keeps events and publishes them, each for itself: it is kept and published, or neither.
--
-- KEYS, all of one slot: 1 the epoch; then for each event four: its channel's stream, the last id,
-- the request, the user's seats.
--
-- ARGV: 1 events, 2 bytes and 3 milliseconds that a channel keeps, 4 milliseconds that its last id is
-- remembered, 5 milliseconds that a request is remembered, 6 how many replicas are known to be alive,
-- 7 and on: their names. Then for each event eight: the channel, or '' where it is called like the
-- stream; the message up to where `until` goes; the message after the id; the channel's tag; `kept`,
-- `transient` or `probe`; milliseconds until it is over or ''; the request's fingerprint or ''; `1`
-- where it is asked whether the user is online.
--
-- Answers a line for each: `new`, the id, the one before it, `1` or `0` for online, and `until`, with
-- `-` for what there is not; or `again` and what was answered first; or `conflict`; or `error` and
-- why.
--
-- The order matters. XADD is the first write, because a full Redis refuses only that one. PUBLISH is
-- the last, because it alone cannot be taken back.

local call, match, format = redis.call, string.match, string.format
local events, bytes, ttl, meta = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4]
local clock = call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local fresh = format('%.0f-0', now)
local expired = format('%.0f-0', math.max(now - ttl, 0))

local function field(entry, name)
  for i = 1, #entry[2], 2 do
    if entry[2][i] == name then return entry[2][i + 1] end
  end
end

local function is_online(seats)
  local live
  for i = 7, 6 + ARGV[6] do
    live = live or {}
    live[ARGV[i]] = true
  end
  for i = 1, #seats, 2 do
    -- Whoever took a seat so recently is alive, also if the list is older than its replica.
    local recent = seats[i + 1] + 9000 > now
    if not live or recent or live[match(seats[i], '^[^:]*')] then return '1' end
  end
  return '0'
end

-- Whether a stream refuses an id because somebody else's entry stands above it.
local function is_taken(reason)
  return string.find(reason, 'equal or smaller', 1, true)
    or string.find(reason, 'exhausted the last possible ID', 1, true)
    or string.find(reason, 'Invalid stream ID', 1, true)
end

-- The event at hand: its keys, its request, and what is remembered of its channel: the last id, the
-- bytes of all its events, and those of them that are known to be dropped.
local stream, memory, request, print
local held, last, sum, base
-- What was done of it.
local id, written

-- Drops the oldest events down to three quarters of the bytes, so that it need not look at them for
-- every event. Yields the bytes of all that are dropped.
local function shorten(size, total)
  if size > bytes then
    call('XTRIM', stream, 'MAXLEN', 0)
    return total
  end
  local from, least = '-', total - bytes
  local aim = math.min(total - math.floor(bytes * 3 / 4), total - size)
  while true do
    local page = call('XRANGE', stream, from, '+', 'COUNT', 16)
    if #page == 0 then return base end
    for i, entry in ipairs(page) do
      local to = tonumber(field(entry, 'c')) or 0
      local own = #(field(entry, 'm') or '')
      if from == '-' and i == 1 then
        -- Others have gone by their number or their age.
        if to - own >= least then return to - own end
        least = aim
      end
      if to - own >= least then
        call('XTRIM', stream, 'MINID', entry[1])
        return to - own
      end
    end
    from = '(' .. page[#page][1]
  end
end

-- Nothing was published, so nothing is kept. The id is not given out a second time: the stream
-- would not take it.
local function undo(run)
  if print ~= '' then run('DEL', request) end
  if not id then return end
  run('XDEL', stream, id)
  if run('XLEN', stream) == 0 then
    run('DEL', stream)
    if held then run('SET', memory, held, 'PX', meta) else run('DEL', memory) end
  else
    local line = format('%s %.0f %.0f %s', last or '0-0', sum, base, id)
    run('SET', memory, line, 'PX', meta)
  end
end

local function remember(tag, online)
  local members = {}
  if id then members[1] = '"id":"' .. tag .. '~' .. id .. '"' end
  if online ~= '-' then
    members[#members + 1] = '"online":' .. (online == '1' and 'true' or 'false')
  end
  local line = print .. ' {' .. table.concat(members, ',') .. '}'
  call('SET', request, line, 'PX', ARGV[5])
  written = true
end

-- Does one event, whose keys and arguments begin there.
local function post(k, a)
  stream, memory, request, print = KEYS[k], KEYS[k + 1], KEYS[k + 2], ARGV[a + 6]
  id, written = nil, false
  if print ~= '' then
    local known = call('GET', request)
    if known then
      local first, answer = match(known, '^(%S*) (.*)$')
      return first == print and 'again ' .. answer or 'conflict'
    end
  end
  local channel, head, members, tag, mode = ARGV[a], ARGV[a + 1], ARGV[a + 2], ARGV[a + 3], ARGV[a + 4]
  if channel == '' then channel = stream end
  local online = '-'
  if ARGV[a + 7] == '1' then
    online = is_online(call('ZRANGE', KEYS[k + 3], 0, -1, 'WITHSCORES'))
  end

  if mode == 'transient' then
    if print ~= '' then remember(tag, online) end
    -- A server that takes no writes must not be believed that it published.
    if not written then call('XTRIM', stream, 'MAXLEN', '~', events) end
    call('PUBLISH', channel, head .. '},' .. members)
    return 'new - - ' .. online .. ' -'
  end

  local ms, n, void, epoch
  last = nil
  held = call('GET', memory)
  if held then
    last, ms, n, sum, base, void = match(held, '^((%d+)%-(%d+)) (%d+) (%d+) ?(%S*)$')
  end
  if not last then
    local top = call('XREVRANGE', stream, '+', '-', 'COUNT', 1)[1]
    base = nil
    -- What others put there may bear any id.
    if top and string.find(field(top, 'm') or '', '~' .. top[1] .. '","prev":"', 1, true) then
      last, sum = top[1], field(top, 'c')
      ms, n = match(last, '^(%d+)-(%d+)$')
    else
      epoch, sum = call('GET', KEYS[1]), nil
    end
  elseif void ~= '' then
    -- An id that was given out and taken back.
    ms, n = match(void, '^(%d+)-(%d+)$')
  end
  sum, base = tonumber(sum) or 0, tonumber(base) or 0

  -- Ids grow, also where the clock was set back, and are later than the epoch.
  local place = fresh
  if ms then
    if tonumber(ms) >= now then place = format('%.0f-%.0f', ms, n + 1) end
  elseif epoch and tonumber(epoch) >= now then
    place = format('%.0f-0', epoch + 1)
  end
  local prev, till = last or '0-0', '-'
  if ARGV[a + 5] ~= '' then
    till = format('%.0f', now + ARGV[a + 5])
    head = head .. ',"until":' .. till
  end
  local message = head .. '},"id":"' .. tag .. '~' .. place .. '","prev":"' .. tag .. '~' .. prev .. '",' .. members
  local total = sum + #message
  local total_text = format('%.0f', total)
  local added = redis.pcall('XADD', stream, 'MAXLEN', '~', events, place, 'c', total_text, 'm', message)
  if type(added) == 'table' and added.err then
    if not is_taken(added.err) then error(added) end
    -- The history goes with that entry, or nothing would ever be kept here again. Who is behind is
    -- told: what follows their place is not there.
    call('DEL', stream)
    base = sum
    call('XADD', stream, 'MAXLEN', '~', events, place, 'c', total_text, 'm', message)
  end
  id, written = place, true
  if not last and not epoch then
    call('SET', KEYS[1], format('%.0f', now - 1), 'PX', meta, 'NX')
  end
  call('XTRIM', stream, 'MINID', '~', expired)
  local dropped = base
  if total - base > bytes then dropped = shorten(#message, total) end
  call('PEXPIRE', stream, ttl)
  call('SET', memory, place .. ' ' .. total_text .. ' ' .. format('%.0f', dropped), 'PX', meta)
  if print ~= '' then remember(tag, online) end
  call('PUBLISH', channel, message)
  -- A probe proves every right that an event may need, and leaves nothing behind.
  if mode == 'probe' then undo(call) end
  return 'new ' .. place .. ' ' .. prev .. ' ' .. online .. ' ' .. till
end

local answers, k, a = {}, 2, 7 + ARGV[6]

local function run()
  while k <= #KEYS do
    answers[#answers + 1] = post(k, a)
    k, a = k + 4, a + 8
  end
end

while true do
  local ok, failure = pcall(run)
  if ok then return answers end
  if written then undo(redis.pcall) end
  -- Redis 7 hands on the text of an error, earlier ones the reply, or the text after the place in
  -- this script.
  if type(failure) == 'table' then failure = failure.err end
  failure = string.gsub(failure, '^@?user_script: ?%d+: %-?', '')
  if not match(failure, '^%u+ ') then failure = 'ERR ' .. failure end
  answers[#answers + 1] = 'error ' .. failure
  k, a = k + 4, a + 8
end
