-- What several scripts use, in named blocks (`-- shared: x [needs y …]`).

-- shared: metrics
-- The hash of the pool's present second; `last` is its newest one. A clock set back starts none.
local function bucket(pool, last)
    local second = math.floor(now)
    last = tonumber(last or "")
    if last and last >= second then
        return two(SECOND, pool, text(last))
    end
    local seconds = T .. SECONDS .. pool
    call("HSET", T .. POOL .. pool, "second", second)
    call("RPUSH", seconds, second)
    local oldest = call("LINDEX", seconds, 0)
    while tonumber(oldest) < second - KEPT do
        call("DEL", two(SECOND, pool, oldest))
        call("LPOP", seconds)
        oldest = call("LINDEX", seconds, 0)
    end
    return two(SECOND, pool, text(second))
end

-- Add the numbers to fields of a hash.
local function add(key, fields, numbers)
    local sums, args = call("HMGET", key, unpack(fields)), {}
    for i, field in ipairs(fields) do
        args[#args + 1] = field
        args[#args + 1] = (tonumber(sums[i] or "") or 0) + numbers[i]
    end
    call("HSET", key, unpack(args))
end

-- shared: pushing needs metrics
local function note_push(pool, n)
    local key = T .. POOL .. pool
    local found = call("HMGET", key, "last_arrival", "second")
    local last = tonumber(found[1] or "")
    local gap = last and math.max(0, now - last) or 0
    add(bucket(pool, found[2]), { "arrivals", "gaps", "gap", "gap2" }, { n, last and n or n - 1, gap, gap * gap })
    call("HSET", key, "last_arrival", now)
end

-- shared: claiming needs metrics
local function note_claims(pool, second, waits)
    local fields, numbers, places, sum = { "waits", "wait" }, { #waits, 0 }, {}, 0
    for _, wait in ipairs(waits) do
        wait = math.max(0, wait)
        sum = sum + wait
        local bin = "h0"
        if wait >= LEAST then
            bin = "h" .. (1 + math.floor(STEPS * math.log(wait / LEAST) / math.log(2)))
        end
        if not places[bin] then
            fields[#fields + 1], numbers[#numbers + 1] = bin, 0
            places[bin] = #fields
        end
        numbers[places[bin]] = numbers[places[bin]] + 1
    end
    numbers[2] = sum
    add(bucket(pool, second), fields, numbers)
end

-- shared: ending needs metrics
local function note_end(pool, kind, service, response)
    local key = T .. POOL .. pool
    local found = call("HMGET", key, "second", "completed")
    local fields, numbers = { kind }, { 1 }
    service = math.max(0, service)
    if kind ~= "provider" then
        fields, numbers = { kind, "service", "service2" }, { 1, service, service * service }
    end
    if kind == "completed" then
        fields[4], numbers[4] = "response", math.max(0, response)
        call("HSET", key, "last_end", now, "completed", tonumber(found[2] or 0) + 1)
    else
        call("HSET", key, "last_end", now)
    end
    add(bucket(pool, found[1]), fields, numbers)
end

-- shared: suspects
local function holds_suspect(owner)
    return call("HEXISTS", T .. SUSPECTS, owner) == 1
end

local function count_suspect(owner, by)
    if call("HINCRBY", T .. SUSPECTS, owner, by) <= 0 then
        call("HDEL", T .. SUSPECTS, owner)
    end
end

-- shared: items needs suspects
-- The line of ready items with these requirements; suspects stand in one of their own.
local function line_of(needs, crashes)
    return (crashes >= SUSPECT and "s" or "n") .. needs
end

-- Where an item stands in its line: behind those of higher priority (the score), then of lower sequence.
local function place(sequence, id)
    return string.format("%016d", sequence) .. id
end

local FIELDS = { "state", "token", "pool", "worker", "owner", "crashes", "started", "created", "attempts",
    "max_attempts", "max_crashes", "priority", "sequence", "needs", "id", "error_type" }

-- What the scripts need to know of an item; nil if there is none.
local function load(id)
    local found = call("HMGET", T .. ITEM .. id, unpack(FIELDS))
    if not found[1] then
        return nil
    end
    return {
        id = id, state = found[1], token = found[2] or "0", pool = found[3], worker = found[4] or "", owner = found[5] or "",
        crashes = tonumber(found[6] or 0), started = tonumber(found[7] or now), created = tonumber(found[8]),
        attempts = tonumber(found[9] or 0), max_attempts = tonumber(found[10]), max_crashes = tonumber(found[11]),
        priority = tonumber(found[12]), sequence = tonumber(found[13]), needs = found[14] or "", error_type = found[16],
    }
end

local function line_up(item)
    local line = line_of(item.needs, item.crashes)
    call("ZADD", two(LINE, item.pool, line), 0 - item.priority, place(item.sequence, item.id))
    call("SADD", T .. LINES .. item.pool, line)
end

local function count_needs(item, by)
    if item.needs ~= "" and call("HINCRBY", T .. NEEDS .. item.pool, item.needs, by) <= 0 then
        call("HDEL", T .. NEEDS .. item.pool, item.needs)
    end
end

-- Take the item out of the books of its state.
local function leave(item)
    local pool = item.pool
    if item.state == "ready" then
        local line = line_of(item.needs, item.crashes)
        local key = two(LINE, pool, line)
        call("ZREM", key, place(item.sequence, item.id))
        if call("EXISTS", key) == 0 then
            call("SREM", T .. LINES .. pool, line)
        end
    elseif item.state == "delayed" then
        call("ZREM", T .. DELAYED .. pool, item.id)
        count_needs(item, -1)
    elseif item.state == "claimed" then
        call("ZREM", T .. LEASES .. pool, item.id)
        call("HDEL", T .. CLAIMS .. item.owner, item.id)
        call("SREM", T .. HELD .. item.worker, item.id)
        if item.crashes >= SUSPECT then
            count_suspect(item.owner, -1)
        end
    elseif item.state == "dead" then
        call("ZREM", T .. DEAD .. pool, item.id)
        local kind = item.error_type or "=unknown"
        if call("HINCRBY", T .. ERRORS .. pool, kind, -1) <= 0 then
            call("HDEL", T .. ERRORS .. pool, kind)
        end
    end
end

-- Enter the item, with what is new about it, into the books of its next state; `error` is {type, text} or nil.
local function enter(item, state, due, error)
    local key, pool = T .. ITEM .. item.id, item.pool
    item.state = state
    local since = (state == "delayed" and due > now) and due or now
    call("HSET", key, "state", state, "attempts", item.attempts, "crashes", item.crashes, "due",
        state == "delayed" and due or 0, "since", since)
    local gone = { "worker", "owner" }
    if error then
        call("HSET", key, "error_type", error[1], "error", error[2])
    else
        gone[#gone + 1] = "error_type"
        gone[#gone + 1] = "error"
    end
    if state == "dead" then
        call("HSET", key, "finished", now)
        call("ZADD", T .. DEAD .. pool, item.sequence, item.id)
        call("HINCRBY", T .. ERRORS .. pool, error[1], 1)
    else
        gone[#gone + 1] = "finished"
        if state == "ready" then
            line_up(item)
        else
            call("ZADD", T .. DELAYED .. pool, due, item.id)
            count_needs(item, 1)
        end
    end
    call("HDEL", key, unpack(gone))
end

-- shared: attempts needs items
-- Keep the attempt that ends now without a result.
local function record(item, outcome, error, cost, walked)
    call("RPUSH", T .. ATTEMPTS .. item.id, item.token, item.worker, item.started, now, outcome, error and error[1] or "",
        error and error[2] or "", cost, walked)
end

local function crash(item, why)
    leave(item)
    item.crashes = item.crashes + 1
    local times = item.crashes == 1 and "once" or item.crashes .. " times"
    local error = { "=WorkerCrashed", "=this item has lost its worker " .. times .. "; the last time " .. why }
    record(item, "crashed", error, 0, "")
    enter(item, item.crashes >= item.max_crashes and "dead" or "ready", 0, error)
end

local function release(item, walked)
    record(item, "released", nil, 0, walked)
    leave(item)
    enter(item, "ready", 0)
end

-- shared: fence
-- What a caller is told who does not hold the item: its state, newest token and worker; nothing if there is none.
local function lost(item)
    return item and { item.state, item.token, item.worker } or { "none" }
end

-- Whether the last attempt that ended is this one: its operation comes again, because its answer was lost.
local function has_ended(item, token, outcome, error)
    if not again or not item then
        return false
    end
    local last = call("LRANGE", T .. ATTEMPTS .. item.id, -ATTEMPT, -1)
    return last[1] and (token == "" or token == last[1]) and last[5] == outcome and last[7] == error
end

-- shared: waiting
-- Whether a message of the channel is in the inbox.
local function has_message(execution, channel)
    return call("EXISTS", two(INBOX, execution, channel)) == 1
end

-- Enter one who is parked, with or without a message, where `deliver` looks for it.
local function watch(execution, channel, updated)
    if has_message(execution, channel) then
        call("SREM", T .. IDLE .. channel, execution)
        call("ZADD", T .. DUE, updated, execution)
    else
        call("ZREM", T .. DUE, execution)
        call("SADD", T .. IDLE .. channel, execution)
    end
end

-- shared: executions needs waiting
local function forget_message(id)
    if call("HINCRBY", T .. MESSAGE .. id, "refs", -1) <= 0 then
        call("DEL", T .. MESSAGE .. id)
    end
end

local function drop_inbox(execution)
    for _, channel in ipairs(call("SMEMBERS", T .. INBOXES .. execution)) do
        local key = two(INBOX, execution, channel)
        for _, id in ipairs(call("LRANGE", key, 0, -1)) do
            forget_message(id)
        end
        call("DEL", key)
    end
    call("DEL", T .. INBOXES .. execution)
end

-- Take a snapshot out of all the books that its event and its channel stand in.
local function unlist(execution, event, channel)
    if event then
        call("ZREM", T .. EVENT .. event, execution)
    end
    if channel and event == "=waiting" then
        call("ZREM", T .. PARKED .. channel, execution)
        call("SREM", T .. IDLE .. channel, execution)
        call("ZREM", T .. DUE, execution)
    elseif channel and event == "=woken" then
        call("SREM", T .. WOKEN .. channel, execution)
    end
end

local function drop_one(execution)
    local key = T .. SNAPSHOT .. execution
    local found = call("HMGET", key, "event", "channel")
    unlist(execution, found[1], found[2])
    call("DEL", key)
    drop_inbox(execution)
    call("ZREM", T .. EXECUTIONS, execution)
end

local function drop_prefix(prefix, keep)
    for _, name in ipairs(call("ZRANGEBYLEX", T .. EXECUTIONS, "[" .. prefix, "(" .. prefix .. HIGHEST)) do
        if name ~= keep then
            drop_one(name)
        end
    end
end

-- Drop the snapshots and the inboxes of an execution and of its descendants.
local function drop_tree(execution)
    if call("ZSCORE", T .. EXECUTIONS, execution) then
        drop_one(execution)
    end
    drop_prefix(execution .. ":")
end

local function drop_finished(execution)
    if call("HGET", T .. SNAPSHOT .. execution, "event") == "=machine_end" then
        drop_tree(execution)
    end
end

-- shared: handing needs waiting
-- Move the channel's oldest message into the inboxes of all who wait there, and of one more.
local function hand_out(channel, more)
    local list = T .. CHANNEL .. channel
    local id, refs, taker = call("LPOP", list), 0, more
    if call("EXISTS", list) == 0 then
        call("ZREM", T .. CHANNELS, channel)
    end
    local function give(execution)
        refs = refs + 1
        call("RPUSH", two(INBOX, execution, channel), id)
        call("SADD", T .. INBOXES .. execution, channel)
        call("ZADD", T .. EXECUTIONS, 0, execution)
    end
    local parked = call("ZRANGE", T .. PARKED .. channel, 0, -1, "WITHSCORES")
    for i = 1, #parked, 2 do
        give(parked[i])
        call("ZADD", T .. DUE, parked[i + 1], parked[i])
        if parked[i] == taker then
            taker = nil
        end
    end
    call("DEL", T .. IDLE .. channel)
    for _, execution in ipairs(call("SMEMBERS", T .. WOKEN .. channel)) do
        give(execution)
        if execution == taker then
            taker = nil
        end
    end
    if taker then
        give(taker)
    end
    if refs > 0 then
        call("HSET", T .. MESSAGE .. id, "refs", refs)
    else
        call("DEL", T .. MESSAGE .. id)
    end
end

-- shared: crew
-- Enter a worker into the books of its status and of its pool, and take it out of all others.
local function list_worker(id, owner, status, heartbeat, lease_until)
    local key, pool = T .. WORKER .. id, call("HGET", T .. TOLD .. id, "pool")
    local found = call("HMGET", key, "sequence", "pool", "listed")
    if found[3] and (found[2] ~= pool or found[3] ~= status) then
        call("ZREM", two(STAFF, found[2], found[3]), id)
    end
    if pool and (found[2] ~= pool or found[3] ~= status) then
        call("ZADD", two(STAFF, pool, status), found[1], id)
        call("HSET", key, "pool", pool, "listed", status)
    end
    if LIVING[status] then
        call("ZADD", T .. LIVE, lease_until, id)
        call("SADD", T .. CREW .. owner, id)
        call("SADD", T .. OWNERS, owner)
        call("ZREM", T .. ENDED, id)
    else
        call("ZREM", T .. LIVE, id)
        call("SREM", T .. CREW .. owner, id)
        if status == "terminated" or status == "lost" then
            call("ZADD", T .. ENDED, heartbeat, id)
        end
    end
    call(status == "terminating" and "SADD" or "SREM", T .. DRAINING .. owner, id)
end

local function worker_record(id)
    local found = call("HMGET", T .. WORKER .. id, "status", "heartbeat", "host", "pid", "capabilities", "started", "owner",
        "lease_until")
    found[9] = call("SRANDMEMBER", T .. HELD .. id)
    found[10] = id
    return cjson.encode({ found, call("HGETALL", T .. TOLD .. id) })
end
