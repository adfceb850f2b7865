-- Takes seats and enters what a replica holds, for several users one after another.
--
-- ARGV: 1 the replica, 2 the limit (0: none), 3 `refuse` or `oldest`, 4 how many that are over are
-- wanted, 5 how long seats are remembered (ms), 6 the time of the list of live replicas (0: not
-- known), 7 how many are on it, and the list. Then for each user one of these, in words:
--   enter, and what is held;
--   take, the connection, the credential's session or `-`, when it was issued (ms), what of its
--     revocations is looked at here (0 nothing, 1 the user, 2 the session as well), `keep` or
--     `settle`, and what is held, which other seats of the replica are not.
-- What is held: each connection, and its time or `-`.
-- KEYS: for each user its seats, then the user's revocations and the session's where they are
-- looked at. A seat is `<replica>:<connection>` in a sorted set by time.
--
-- Answers for each: the time and the seats that had to go; nothing where there is no room;
-- `revoked`; `entered`; or `failed` and why, which does not concern the others.

local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local replica = ARGV[1] .. ':'
local limit = tonumber(ARGV[2])
if limit == 0 then limit = math.huge end
local as_of = tonumber(ARGV[6])
local first = 8 + ARGV[7]
local key = 0

local function next_key()
  key = key + 1
  return KEYS[key]
end

-- What is held, from this word on.
local function held_in(words, from)
  local held = {}
  for i = from, #words, 2 do held[replica .. words[i]] = words[i + 1] end
  return held
end

-- Takes out what the replica does not hold any more.
local function settle(seats, held)
  for _, seat in ipairs(redis.call('ZRANGE', seats, 0, -1)) do
    if string.sub(seat, 1, #replica) == replica and not held[seat] then
      redis.call('ZREM', seats, seat)
    end
  end
end

local function enter(seats, held)
  for seat, at in pairs(held) do
    if at ~= '-' then redis.call('ZADD', seats, 'NX', at, seat) end
  end
  settle(seats, held)
  -- Where it holds none, those who do see to the others.
  if next(held) then redis.call('PEXPIRE', seats, ARGV[5]) end
  return {'entered'}
end

-- Does what `Mark::covers` does.
local function is_revoked(user, session, name, issued)
  if session and redis.call('EXISTS', session) > 0 then return true end
  if not user then return false end
  local mark = redis.call('HMGET', user, 'all', 'but', 'session')
  local all, but = tonumber(mark[1] or 0) or 0, tonumber(mark[2] or 0) or 0
  return all > 0 and issued <= all or but > 0 and issued <= but and mark[3] ~= name
end

-- Looks for seats of replicas that are gone only when there is no room: a seat taken after the list
-- was made may be of a replica that is not on it.
local function sweep(seats, taken)
  local live = {}
  for i = 8, first - 1 do live[ARGV[i]] = true end
  local all = redis.call('ZRANGE', seats, 0, -1, 'WITHSCORES')
  for i = 1, #all, 2 do
    if tonumber(all[i + 1]) <= as_of and not live[string.match(all[i], '^[^:]*')] then
      redis.call('ZREM', seats, all[i])
      taken = taken - 1
    end
  end
  return taken
end

local function take(seats, seat)
  local taken = redis.call('ZCARD', seats)
  if taken >= limit and as_of > 0 then taken = sweep(seats, taken) end
  if taken >= limit and ARGV[3] == 'refuse' then return {} end
  -- Each seat has a time of its own, so that there is a newest one.
  local at = now
  if taken > 0 then
    local last = redis.call('ZRANGE', seats, -1, -1, 'WITHSCORES')
    if last[2] and tonumber(last[2]) >= at then at = tonumber(last[2]) + 1 end
  end
  redis.call('ZADD', seats, at, seat)
  redis.call('PEXPIRE', seats, ARGV[5])
  local answer = {string.format('%.0f', at)}
  if taken >= limit then
    -- Those that are over are taken out at once, so that they are named once.
    local over = math.min(taken + 1 - limit, tonumber(ARGV[4]))
    for _, old in ipairs(redis.call('ZRANGE', seats, 0, over - 1)) do answer[#answer + 1] = old end
    redis.call('ZREMRANGEBYRANK', seats, 0, over - 1)
  end
  return answer
end

local function run(words, seats, user, session)
  if words[1] == 'enter' then return enter(seats, held_in(words, 2)) end
  if is_revoked(user, session, words[3], tonumber(words[4])) then return {'revoked'} end
  if words[6] == 'settle' then settle(seats, held_in(words, 7)) end
  return take(seats, replica .. words[2])
end

local answers = {}
for i = first, #ARGV do
  local words = {}
  for word in string.gmatch(ARGV[i], '%S+') do words[#words + 1] = word end
  local seats, user, session = next_key(), nil, nil
  if words[1] == 'take' and words[5] ~= '0' then user = next_key() end
  if words[1] == 'take' and words[5] == '2' then session = next_key() end
  local ok, answer = pcall(run, words, seats, user, session)
  if not ok then
    -- Redis 7 hands the text of the error on, earlier ones the reply.
    answer = {'failed', type(answer) == 'table' and answer.err or tostring(answer)}
  end
  answers[#answers + 1] = answer
end
return answers
