-- Work items, in named blocks (`-- name: x [needs y …]`). ARGV from 3 on are the operation's own arguments.

-- name: push needs items pushing
-- pool, operation, then of each item: id, data, priority, not_before, needs, max_attempts, max_crashes
local pool, operation = ARGV[3], ARGV[4]
local answers, seen, n = {}, {}, 0
for i = 5, #ARGV, 7 do
    local id, due = ARGV[i], tonumber(ARGV[i + 3])
    local key = T .. ITEM .. id
    local new = call("EXISTS", key) == 0
    answers[#answers + 1] = (new or (again and not seen[id] and call("HGET", key, "pushed") == operation)) and 1 or 0
    seen[id] = true
    if new then
        n = n + 1
        local sequence = call("INCR", T .. SEQUENCE)
        local state = due > now and "delayed" or "ready"
        call("HSET", key, "id", id, "pool", pool, "state", state, "priority", ARGV[i + 2], "sequence", sequence, "needs",
            ARGV[i + 4], "max_attempts", ARGV[i + 5], "max_crashes", ARGV[i + 6], "created", now, "due", due, "since",
            math.max(now, due), "pushed", operation)
        call("SET", T .. DATA .. id, ARGV[i + 1])
        call("ZADD", T .. ALL .. pool, sequence, id)
        local item = { id = id, pool = pool, priority = tonumber(ARGV[i + 2]), sequence = sequence, needs = ARGV[i + 4],
            crashes = 0 }
        if state == "ready" then
            line_up(item)
        else
            call("ZADD", T .. DELAYED .. pool, due, id)
            count_needs(item, 1)
        end
    end
end
if n > 0 then
    call("SADD", T .. POOLS, pool)
    note_push(pool, n)
end
return answers

-- name: claim needs claiming
-- pool, worker, owner, n, lease, limit, whether the worker may ask for the first time, operation, then capabilities
local pool, worker, owner, n = ARGV[3], ARGV[4], ARGV[5], tonumber(ARGV[6])
local ends, limit, operation = now + tonumber(ARGV[7]), tonumber(ARGV[8]), ARGV[10]
local delayed, leases, claims = T .. DELAYED .. pool, T .. LEASES .. pool, T .. CLAIMS .. owner
local answer, waits = { text(now) }, {}

if again then
    local held = call("HGETALL", claims)
    for i = 1, #held, 2 do
        local found = call("HMGET", T .. ITEM .. held[i], "attempts", "crashes", "max_attempts", "created", "due", "claimed")
        if found[6] == operation then
            answer[#answer + 1] = cjson.encode({ held[i], held[i + 1], unpack(found, 1, 5) })
            answer[#answer + 1] = call("GET", T .. DATA .. held[i])
        end
    end
    if #answer > 1 then
        return answer
    end
end

if ARGV[9] == "1" then
    local found = call("HMGET", T .. WORKER .. worker, "status", "began")
    if LIVING[found[1]] and call("HSETNX", T .. TOLD .. worker, "asked", now) == 1 and found[2] then
        local key, new = T .. POOL .. pool, math.max(0, now - tonumber(found[2]))
        local before = call("HMGET", key, "startup", "second")
        local startup = tonumber(before[1] or "")
        bucket(pool, before[2])
        call("HSET", key, "startup", startup and startup + SMOOTH * (new - startup) or new)
    end
end

local ripe = call("ZRANGEBYSCORE", delayed, "-inf", now, "LIMIT", 0, RIPE)
local expired = call("ZRANGEBYSCORE", leases, "-inf", now, "LIMIT", 0, EXPIRED)
if #ripe > 0 or #expired > 0 then
    -- here: attempts
    for _, id in ipairs(ripe) do
        local item = load(id)
        leave(item)
        call("HSET", T .. ITEM .. id, "state", "ready")
        line_up(item)
    end
    for _, id in ipairs(expired) do
        crash(load(id), "its lease ran out")
    end
end

local about = call("HMGET", T .. POOL .. pool, "paused", "second")
if about[1] and (about[1] == "inf" or tonumber(about[1]) > now) then
    return answer
end
if limit then
    n = math.min(n, limit - call("ZCARD", leases))
end
if n < 1 then
    return answer
end

local function take(line, member)
    local id = string.sub(member, 17)
    local key = T .. ITEM .. id
    local found = call("HMGET", key, "token", "attempts", "crashes", "max_attempts", "created", "since")
    local token = (found[1] or 0) + 1
    call("HSET", key, "state", "claimed", "token", token, "worker", worker, "owner", owner, "due", ends, "started", now,
        "claimed", operation)
    call("ZADD", leases, ends, id)
    call("HSET", claims, id, token)
    call("SADD", T .. HELD .. worker, id)
    if line.suspect then
        call("HINCRBY", T .. SUSPECTS, owner, 1)
    end
    waits[#waits + 1] = now - found[6]
    answer[#answer + 1] = cjson.encode({ id, token, found[2], found[3], found[4], found[5], text(ends) })
    answer[#answer + 1] = call("GET", T .. DATA .. id)
end

-- The lines that the capabilities cover; the requirements in their names are netstrings, one after the other.
local able
local function covers(line)
    if not able then
        able = {}
        for i = 11, #ARGV do
            able[ARGV[i]] = true
        end
    end
    local at = 2
    while at <= #line do
        local colon = string.find(line, ":", at, true)
        local size = tonumber(string.sub(line, at, colon - 1))
        if not able[string.sub(line, colon + 1, colon + size)] then
            return false
        end
        at = colon + size + 1
    end
    return true
end

local lines, barred = {}, nil
for _, name in ipairs(call("SMEMBERS", T .. LINES .. pool)) do
    local suspect = string.byte(name) == 115
    if suspect and barred == nil then
        barred = call("HEXISTS", T .. SUSPECTS, owner) == 1
    end
    if (#name == 1 or covers(name)) and not (suspect and barred) then
        lines[#lines + 1] = { name = name, key = two(LINE, pool, name), suspect = suspect }
    end
end
if #lines == 1 and not lines[1].suspect then
    local members = call("ZPOPMIN", lines[1].key, n)
    for i = 1, #members, 2 do
        take(lines[1], members[i])
    end
    lines[1].empty = #members < 2 * n
else
    while #waits < n do
        local best
        for _, line in ipairs(lines) do
            if line.head == nil then
                local found = call("ZRANGE", line.key, 0, 0, "WITHSCORES")
                line.head, line.score, line.empty = found[1] or false, tonumber(found[2] or 0), not found[1]
            end
            if line.head and not (line.suspect and barred) and (not best or line.score < best.score
                or (line.score == best.score and line.head < best.head)) then
                best = line
            end
        end
        if not best then
            break
        end
        call("ZREM", best.key, best.head)
        take(best, best.head)
        best.head, barred = nil, barred or best.suspect
    end
end
for _, line in ipairs(lines) do
    if line.empty then
        call("SREM", T .. LINES .. pool, line.name)
    end
end
if #waits > 0 then
    call("SADD", T .. OWNERS, owner)
    note_claims(pool, about[2], waits)
end
return answer

-- name: complete needs ending
-- id, token, result, cost, walked
local id, token = ARGV[3], ARGV[4]
local key = T .. ITEM .. id
local found = call("HMGET", key, "state", "token", "worker", "pool", "owner", "crashes", "started", "created", "error_type")
local newest = found[2] or "0"
if found[1] ~= "claimed" or (token ~= "" and token ~= newest) then
    if again and found[1] == "completed" and (token == "" or token == newest) and call("GET", T .. RESULT .. id) == ARGV[5] then
        return 1
    end
    return { found[1] or "none", newest, found[3] or "" }
end
local pool, owner = found[4], found[5]
call("ZREM", T .. LEASES .. pool, id)
call("HDEL", T .. CLAIMS .. owner, id)
call("SREM", T .. HELD .. found[3], id)
if tonumber(found[6] or 0) >= SUSPECT then
    -- here: suspects
    count_suspect(owner, -1)
end
call("HSET", key, "state", "completed", "finished", now, "cost", ARGV[6], "walked", ARGV[7])
if found[9] then
    call("HDEL", key, "error_type", "error")
end
call("SET", T .. RESULT .. id, ARGV[5])
if call("ZRANGEBYLEX", T .. EXECUTIONS, "[" .. id, "(" .. id .. ";", "LIMIT", 0, 1)[1] then
    -- here: executions
    drop_tree(id)
end
if tonumber(newest) > ATTEMPTS_KEPT and call("LLEN", T .. ATTEMPTS .. id) >= ATTEMPTS_KEPT * ATTEMPT then
    call("ZADD", T .. MANY, now, id)
end
note_end(pool, "completed", now - found[7], now - found[8])
return 1

-- name: fail needs attempts fence executions ending
-- id, token, error type, error, consume, permanent, cost, walked, the first attempt that waits are given for, and the waits
local id, token, error = ARGV[3], ARGV[4], { ARGV[5], ARGV[6] }
local consume, first = ARGV[7] == "1", tonumber(ARGV[11])
local outcome = consume and "failed" or "provider"
local item = load(id)
if not item or item.state ~= "claimed" or (token ~= "" and token ~= item.token) then
    if has_ended(item, token, outcome, error[2]) then
        return { (item.state == "claimed" or item.state == "completed") and "ready" or item.state }
    end
    return lost(item)
end
local attempts = item.attempts + (consume and 1 or 0)
local wait = ARGV[12]
if first > 0 then
    wait = ARGV[12 + attempts - first]
    if not wait then
        return attempts
    end
end
wait = tonumber(wait)
local dead = consume and (ARGV[8] == "1" or attempts >= item.max_attempts)
record(item, outcome, error, ARGV[9], ARGV[10])
leave(item)
item.attempts = attempts
enter(item, dead and "dead" or wait > 0 and "delayed" or "ready", now + wait, error)
drop_finished(id)
note_end(item.pool, outcome, now - item.started)
return { item.state }

-- name: release needs attempts fence
-- id, token, walked
local id, token = ARGV[3], ARGV[4]
local item = load(id)
if not item or item.state ~= "claimed" or (token ~= "" and token ~= item.token) then
    return has_ended(item, token, "released", "") and 1 or lost(item)
end
release(item, ARGV[5])
return 1

-- name: hand_back needs attempts
-- operation, whether they crashed, pool, worker, owner
local operation, crashed, pool, worker, owner = ARGV[3], ARGV[4] == "1", ARGV[5], ARGV[6], ARGV[7]
local known = again and call("GET", T .. DONE .. operation)
if known then
    return known
end
local ids
if worker ~= "" then
    ids = call("SMEMBERS", T .. HELD .. string.sub(worker, 2))
elseif owner ~= "" then
    ids = call("HKEYS", T .. CLAIMS .. string.sub(owner, 2))
else
    ids = call("ZRANGE", T .. LEASES .. string.sub(pool, 2), 0, -1)
end
local n = 0
for _, id in ipairs(ids) do
    local item = load(id)
    if (pool == "" or pool == "=" .. item.pool) and (owner == "" or owner == "=" .. item.owner) then
        n = n + 1
        if crashed then
            crash(item, "its process died")
        else
            release(item, "")
        end
    end
end
return done(operation, n)

-- name: dead needs items
-- pool, after which sequence, how many: their ids, and the sequence of the last
local found = call("ZRANGEBYSCORE", T .. DEAD .. ARGV[3], "(" .. ARGV[4], "+inf", "WITHSCORES", "LIMIT", 0, ARGV[5])
local ids = {}
for i = 1, #found, 2 do
    ids[#ids + 1] = found[i]
end
return { found[#found] or "", ids }

-- name: retry needs items executions
-- operation, pool, then ids
local known = again and call("GET", T .. DONE .. ARGV[3])
if known then
    return known
end
local n = 0
for i = 5, #ARGV do
    local item = load(ARGV[i])
    if item and item.state == "dead" and item.pool == ARGV[4] then
        n = n + 1
        leave(item)
        item.attempts, item.crashes = 0, 0
        drop_finished(item.id)
        enter(item, "ready", 0)
    end
end
return done(ARGV[3], n)

-- name: cancel needs attempts executions
-- operation, pool, error type, error, then of each: id, the states that it has walked if it is claimed
local known = again and call("GET", T .. DONE .. ARGV[3])
if known then
    return known
end
local n, error = 0, { ARGV[5], ARGV[6] }
for i = 7, #ARGV, 2 do
    local item = load(ARGV[i])
    if item and item.pool == ARGV[4] and (item.state == "ready" or item.state == "delayed" or item.state == "claimed") then
        n = n + 1
        if item.state == "claimed" then
            record(item, "cancelled", error, 0, ARGV[i + 1])
        end
        leave(item)
        drop_tree(item.id)
        enter(item, "dead", 0, error)
    end
end
return done(ARGV[3], n)

-- name: pause
-- pool, until (none: resume)
if ARGV[4] == "" then
    call("HDEL", T .. POOL .. ARGV[3], "paused")
else
    call("HSET", T .. POOL .. ARGV[3], "paused", ARGV[4])
end
return 1

-- name: paused
-- pool
local paused = call("HGET", T .. POOL .. ARGV[3], "paused")
return paused and (paused == "inf" or tonumber(paused) > now) and paused or false

-- shared: reading
local function item_record(id)
    local found = call("HMGET", T .. ITEM .. id, "pool", "state", "priority", "due", "token", "attempts", "crashes",
        "max_attempts", "max_crashes", "needs", "worker", "owner", "error_type", "error", "created", "started", "finished")
    return found[1] and { id, cjson.encode(found), call("GET", T .. DATA .. id), call("GET", T .. RESULT .. id) } or false
end

-- name: item needs reading
-- id
return item_record(ARGV[3])

-- name: items needs reading
-- pool, state, after (a sequence, or "=" and an id), how many to look at: the sequence of the last, and those that match
local pool, state, after = ARGV[3], ARGV[4], ARGV[5]
if string.sub(after, 1, 1) == "=" then
    after = call("HGET", T .. ITEM .. string.sub(after, 2), "sequence")
    if not after then
        return false
    end
end
local source = state == "dead" and DEAD or ALL
local found = call("ZRANGEBYSCORE", T .. source .. pool, "(" .. after, "+inf", "WITHSCORES", "LIMIT", 0, ARGV[6])
local answer = { found[#found] or "" }
for i = 1, #found, 2 do
    if state == "" or call("HGET", T .. ITEM .. found[i], "state") == state then
        answer[#answer + 1] = item_record(found[i])
    end
end
return answer

-- name: attempts
-- id: the list, and of the one that had a result: token, worker, started, finished, cost, walked
local found = call("HMGET", T .. ITEM .. ARGV[3], "state", "token", "worker", "started", "finished", "cost", "walked")
return { call("LRANGE", T .. ATTEMPTS .. ARGV[3], 0, -1), found }

-- shared: counting
local function counts(pool)
    local waiting, delayed, leases = 0, T .. DELAYED .. pool, T .. LEASES .. pool
    for _, line in ipairs(call("SMEMBERS", T .. LINES .. pool)) do
        waiting = waiting + call("ZCARD", two(LINE, pool, line))
    end
    local ripe, expired = call("ZCOUNT", delayed, "-inf", now), call("ZCOUNT", leases, "-inf", now)
    return { waiting + ripe, call("ZCARD", delayed) - ripe, call("ZCARD", leases) - expired, expired,
        tonumber(call("HGET", T .. POOL .. pool, "completed") or 0), call("ZCARD", T .. DEAD .. pool) }
end

-- name: counts needs counting
-- pool
return counts(ARGV[3])

-- name: pools
return call("SMEMBERS", T .. POOLS)

-- name: errors
-- pool
return call("HGETALL", T .. ERRORS .. ARGV[3])

-- name: requirements
-- pool: requirements and numbers of those that are ready, then of those that are delayed
local pool, answer = ARGV[3], {}
for _, line in ipairs(call("SMEMBERS", T .. LINES .. pool)) do
    local n = #line > 1 and call("ZCARD", two(LINE, pool, line)) or 0
    if n > 0 then
        answer[#answer + 1] = string.sub(line, 2)
        answer[#answer + 1] = n
    end
end
for _, each in ipairs(call("HGETALL", T .. NEEDS .. pool)) do
    answer[#answer + 1] = each
end
return answer

-- name: next_due
-- pool
local delayed = call("ZRANGE", T .. DELAYED .. ARGV[3], 0, 0, "WITHSCORES")
local lease = call("ZRANGE", T .. LEASES .. ARGV[3], 0, 0, "WITHSCORES")
local first, second = tonumber(delayed[2] or "inf"), tonumber(lease[2] or "inf")
return (delayed[2] or lease[2]) and text(math.min(first or math.huge, second or math.huge)) or false

-- name: metrics needs counting
-- pool, since which second, at most how many, the JSON of the pool's name
local pool, since, most = ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local key, seconds = T .. POOL .. pool, {}
local found = most > 0 and call("LRANGE", T .. SECONDS .. pool, -most, -1) or {}
for _, second in ipairs(found) do
    if tonumber(second) >= since then
        seconds[#seconds + 1] = second
        seconds[#seconds + 1] = call("HGETALL", two(SECOND, pool, second))
    end
end
local oldest = math.huge
local function wait(since_)
    oldest = math.min(oldest, tonumber(since_ or "") or math.huge)
end
for _, line in ipairs(call("SMEMBERS", T .. LINES .. pool)) do
    for _, member in ipairs(call("ZRANGE", two(LINE, pool, line), 0, LOOK - 1)) do
        wait(call("HGET", T .. ITEM .. string.sub(member, 17), "since"))
    end
end
for _, kind in ipairs({ DELAYED, LEASES }) do
    local first = call("ZRANGE", T .. kind .. pool, 0, 0, "WITHSCORES")
    if first[2] and tonumber(first[2]) <= now then
        wait(first[2])
    end
end
local crew = {}
for status in pairs(LIVING) do
    for _, id in ipairs(call("ZRANGE", two(STAFF, ARGV[6], status), 0, -1)) do
        local about = call("HMGET", T .. WORKER .. id, "owner", "lease_until")
        if tonumber(about[2]) >= now then
            local told = call("HMGET", T .. TOLD .. id, "parallelism", "asked")
            local size = string.match(told[1] or "", "^-?%d+$") and math.max(1, tonumber(told[1])) or 1
            local sums = crew[about[1]] or { 0, 0, 0 }
            if status == "terminating" then
                sums[3] = sums[3] + size
            else
                sums[1], sums[2] = sums[1] + size, sums[2] + (told[2] and 0 or size)
            end
            crew[about[1]] = sums
        end
    end
end
local owners = {}
for owner, sums in pairs(crew) do
    owners[#owners + 1] = { owner, sums[1], sums[2], sums[3] }
end
return { text(now), counts(pool), seconds, call("HMGET", key, "last_arrival", "last_end", "startup"),
    oldest < math.huge and text(oldest) or false, owners }
