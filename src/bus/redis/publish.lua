-- Keeps an event and publishes it, or does neither.
--
-- KEYS, all of one slot: 1 the channel's stream, 2 its last id, 3 the request, 4 the user's seats,
-- 5 the epoch. ARGV: 1 the channel, 2 the message up to where `until` goes, 3 the message after the
-- id, 4 the channel's tag, 5 `kept`, `transient` or `probe`, 6 milliseconds until it is over or '',
-- 7 events, 8 bytes and 9 milliseconds that the channel keeps, 10 milliseconds that its last id is
-- remembered, 11 the request's fingerprint or '', 12 milliseconds that the request is remembered,
-- 13 whether it is asked if the user is online, 14 and on: the live replicas, if they are known.
--
-- Answers `new`, the id, the one before it, `1`, `0` or '' for online, and `until`; or `again` and
-- what was answered first; or `conflict`.
--
-- The order matters. XADD is the first write, because a full Redis refuses only that one. PUBLISH is
-- the last, because it alone cannot be taken back.

local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local mode, events, bytes, meta = ARGV[5], ARGV[7], tonumber(ARGV[8]), ARGV[10]

-- Like redis.call, but what it throws is the server's own reply, in every version of Redis.
local function call(...)
  local reply = redis.pcall(...)
  if type(reply) == 'table' and reply.err then error(reply) end
  return reply
end

local function id_of(ms, n) return string.format('%.0f-%.0f', ms, n) end

local function parts(id)
  local ms, n = string.match(id, '^(%d+)-(%d+)$')
  return tonumber(ms), tonumber(n)
end

local function field(entry, name)
  for i = 1, #entry[2], 2 do
    if entry[2][i] == name then return entry[2][i + 1] end
  end
end

local function remembered()
  local held = call('GET', KEYS[3])
  if not held then return nil end
  local first, answer = string.match(held, '^(%S*) (.*)$')
  if first == ARGV[11] then return {'again', answer} end
  return {'conflict'}
end

local function is_online()
  local live
  for i = 14, #ARGV do
    live = live or {}
    live[ARGV[i]] = true
  end
  local seats = call('ZRANGE', KEYS[4], 0, -1, 'WITHSCORES')
  for i = 1, #seats, 2 do
    -- Whoever took a seat so recently is alive, also if the list is older than its replica.
    local recent = seats[i + 1] + 9000 > now
    if not live or recent or live[string.match(seats[i], '^[^:]*')] then return '1' end
  end
  return '0'
end

-- What is remembered of the channel: its last id, the bytes of all its events, those of them that
-- are known to be dropped, and an id that was given out and taken back.
local held, last, sum, base, void, epoch

local function look()
  held = call('GET', KEYS[2])
  if held then last, sum, base, void = string.match(held, '^(%d+%-%d+) (%d+) (%d+) ?(%S*)$') end
  if not last then
    local top = call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
    -- What others put there may bear any id.
    if top and string.find(field(top, 'm') or '', '~' .. top[1] .. '","prev":"', 1, true) then
      last, sum = top[1], field(top, 'c')
    else
      epoch = call('GET', KEYS[5])
    end
  end
  sum, base = tonumber(sum) or 0, tonumber(base) or 0
end

-- Ids grow, also where the clock was set back, and are later than the epoch.
local function next_id()
  local before = void and void ~= '' and void or last
  if before then
    local ms, n = parts(before)
    if ms >= now then return id_of(ms, n + 1) end
  elseif epoch and tonumber(epoch) >= now then
    return id_of(tonumber(epoch) + 1, 0)
  end
  return id_of(now, 0)
end

-- Drops the oldest events down to three quarters of the bytes, so that it need not look at them for
-- every event.
local function shorten(size)
  if size > bytes then
    call('XTRIM', KEYS[1], 'MAXLEN', 0)
    return sum
  end
  local from, least = '-', sum - bytes
  local aim = math.min(sum - math.floor(bytes * 3 / 4), sum - size)
  while true do
    local page = call('XRANGE', KEYS[1], from, '+', 'COUNT', 16)
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
        call('XTRIM', KEYS[1], 'MINID', entry[1])
        return to - own
      end
    end
    from = '(' .. page[#page][1]
  end
end

local online, id, answer = '', nil, nil
local written = false

-- Nothing was published, so nothing is kept. The id is not given out a second time: the stream
-- would not take it.
local function undo(run)
  if ARGV[11] ~= '' then run('DEL', KEYS[3]) end
  if not id then return end
  run('XDEL', KEYS[1], id)
  if run('XLEN', KEYS[1]) == 0 then
    run('DEL', KEYS[1])
    if held then run('SET', KEYS[2], held, 'PX', meta) else run('DEL', KEYS[2]) end
  else
    local line = string.format('%s %.0f %.0f %s', last, sum, base, id)
    run('SET', KEYS[2], line, 'PX', meta)
  end
end

local function remember()
  if ARGV[11] == '' then return end
  local members = {}
  if id then members[1] = '"id":"' .. ARGV[4] .. '~' .. id .. '"' end
  if online ~= '' then
    members[#members + 1] = '"online":' .. (online == '1' and 'true' or 'false')
  end
  local line = ARGV[11] .. ' {' .. table.concat(members, ',') .. '}'
  call('SET', KEYS[3], line, 'PX', ARGV[12])
  written = true
end

local function transient()
  remember()
  -- A server that takes no writes must not be believed that it published.
  if not written then call('XTRIM', KEYS[1], 'MAXLEN', '~', events) end
  call('PUBLISH', ARGV[1], ARGV[2] .. '},' .. ARGV[3])
  answer = {'new', '', '', online, ''}
end

-- Whether a stream refuses an id because somebody else's entry stands above it.
local function is_taken(reply)
  if type(reply) ~= 'table' or not reply.err then return false end
  return string.find(reply.err, 'equal or smaller', 1, true)
    or string.find(reply.err, 'exhausted the last possible ID', 1, true)
    or string.find(reply.err, 'Invalid stream ID', 1, true)
end

local function kept()
  look()
  local head, till = ARGV[2], ''
  if ARGV[6] ~= '' then
    till = string.format('%.0f', now + ARGV[6])
    head = head .. ',"until":' .. till
  end
  local prev, place, message, total
  local function add(run)
    prev, place = last or '0-0', next_id()
    message = table.concat({
      head, '},"id":"', ARGV[4], '~', place, '","prev":"', ARGV[4], '~', prev, '",', ARGV[3]
    })
    total = string.format('%.0f', sum + #message)
    return run('XADD', KEYS[1], 'MAXLEN', '~', events, place, 'c', total, 'm', message)
  end
  local added = add(redis.pcall)
  if is_taken(added) then
    -- The history goes with that entry, or nothing would ever be kept here again. Who is behind is
    -- told: what follows their place is not there.
    call('DEL', KEYS[1])
    if held then
      base = sum
    else
      last, sum = nil, nil
      look()
    end
    add(call)
  elseif type(added) == 'table' and added.err then
    error(added)
  end
  id, written = place, true
  if not last and not epoch then
    call('SET', KEYS[5], string.format('%.0f', now - 1), 'PX', meta, 'NX')
  end
  local sum_before, base_before = sum, base
  sum = sum + #message
  call('XTRIM', KEYS[1], 'MINID', '~', id_of(math.max(now - ARGV[9], 0), 0))
  if sum - base > bytes then base = shorten(#message) end
  call('PEXPIRE', KEYS[1], ARGV[9])
  call('SET', KEYS[2], string.format('%s %s %.0f', id, total, base), 'PX', meta)
  remember()
  sum, base = sum_before, base_before
  call('PUBLISH', ARGV[1], message)
  answer = {'new', id, prev, online, till}
end

local function run()
  if ARGV[11] ~= '' then
    answer = remembered()
    if answer then return end
  end
  if ARGV[13] == '1' then online = is_online() end
  if mode == 'transient' then transient() else kept() end
  -- A probe proves every right that an event may need, and leaves nothing behind.
  if mode == 'probe' then undo(call) end
end

local ok, failure = pcall(run)
if ok then return answer end
if written then undo(redis.pcall) end
-- Redis 7 hands the text of the error on, earlier ones the reply.
if type(failure) == 'table' then return failure end
if not string.match(failure, '^%u+ ') then failure = 'ERR ' .. failure end
return redis.error_reply(failure)
