-- Workers and locks, in named blocks.

-- name: register needs crew
-- id, owner, lease, host, pid, capabilities, started, began (its time, if it tells one), then metadata: name, JSON
local id, owner, ends = ARGV[3], ARGV[4], now + tonumber(ARGV[5])
local key, told = T .. WORKER .. id, T .. TOLD .. id
local known = call("HMGET", key, "status", "owner", "lease_until", "sequence", "pool", "listed")
local lives, status, sequence = LIVING[known[1]], "active", known[4]
local booked = lives and call("HGET", told, "booked") == "true"
if lives and known[2] ~= owner and tonumber(known[3]) > now and not booked then
    return { known[1], known[2], known[3] }
end
local kept = lives and (known[2] == owner or (booked and tonumber(known[3]) > now))
if known[2] and known[2] ~= owner then
    call("SREM", T .. CREW .. known[2], id)
    call("SREM", T .. DRAINING .. known[2], id)
end
if kept then
    status = known[1]
    if booked then
        call("HSET", told, "booked", "false")
    end
else
    if known[6] then
        call("ZREM", two(STAFF, known[5], known[6]), id)
    end
    call("DEL", key, told)
    sequence = call("INCR", T .. SEQUENCE)
    call("HSET", key, "started", ARGV[9])
    if ARGV[10] ~= "" then
        call("HSET", key, "began", ARGV[10])
    end
end
call("HSET", key, "status", status, "owner", owner, "heartbeat", now, "lease_until", ends, "sequence", sequence)
for i, name in ipairs({ "host", "pid", "capabilities" }) do
    if ARGV[5 + i] == "" then
        call("HDEL", key, name)
    else
        call("HSET", key, name, ARGV[5 + i])
    end
end
for i = 11, #ARGV, 2 do
    call("HSET", told, ARGV[i], ARGV[i + 1])
end
call("ZADD", T .. WORKERS, sequence, id)
list_worker(id, owner, status, now, ends)
return worker_record(id)

-- name: beat
-- owner, lease, the number of leases, then of each: id, token; then workers
local owner, ends = ARGV[3], now + tonumber(ARGV[4])
local n, lost, statuses = tonumber(ARGV[5]), {}, {}
for i = 6, 5 + 2 * n, 2 do
    local key = T .. ITEM .. ARGV[i]
    local found = call("HMGET", key, "state", "token", "pool")
    if found[1] == "claimed" and found[2] == ARGV[i + 1] then
        call("HSET", key, "due", ends)
        call("ZADD", T .. LEASES .. found[3], ends, ARGV[i])
    else
        lost[#lost + 1] = ARGV[i]
    end
end
for i = 6 + 2 * n, #ARGV do
    local key = T .. WORKER .. ARGV[i]
    local found = call("HMGET", key, "owner", "status")
    statuses[#statuses + 1] = found[1] == owner and found[2]
    if found[1] == owner and LIVING[found[2]] then
        call("HSET", key, "heartbeat", now, "lease_until", ends)
        call("ZADD", T .. LIVE, ends, ARGV[i])
    end
end
for _, key in ipairs(call("SMEMBERS", T .. LOCKED .. owner)) do
    call("HSET", T .. LOCK .. key, "until", ends)
end
return { lost, statuses }

-- name: set_status needs crew
-- id, status, then metadata: name, JSON
local id, status = ARGV[3], ARGV[4]
local key = T .. WORKER .. id
local found = call("HMGET", key, "status", "owner", "heartbeat", "lease_until")
if not found[1] then
    return 0
end
if status == "terminating" and not LIVING[found[1]] then
    return 1
end
call("HSET", key, "status", status)
for i = 5, #ARGV, 2 do
    call("HSET", T .. TOLD .. id, ARGV[i], ARGV[i + 1])
end
list_worker(id, found[2], status, found[3], found[4])
return 1

-- name: worker needs crew
-- id
return call("EXISTS", T .. WORKER .. ARGV[3]) == 1 and worker_record(ARGV[3])

-- name: workers needs crew
-- after which sequence, how many, then statuses (none: any): the sequence of the last, and those that match
local found = call("ZRANGEBYSCORE", T .. WORKERS, "(" .. ARGV[3], "+inf", "WITHSCORES", "LIMIT", 0, ARGV[4])
local answer, wanted = { found[#found] or "" }, {}
for i = 5, #ARGV do
    wanted[ARGV[i]] = true
end
for i = 1, #found, 2 do
    if #ARGV == 4 or wanted[call("HGET", T .. WORKER .. found[i], "status")] then
        answer[#answer + 1] = worker_record(found[i])
    end
end
return answer

-- name: staff needs crew
-- the JSON of a pool's name (none: of all who live), then statuses: those of them, not in order
local answer, wanted = {}, {}
for i = 4, #ARGV do
    wanted[ARGV[i]] = true
    for _, id in ipairs(ARGV[3] ~= "" and call("ZRANGE", two(STAFF, ARGV[3], ARGV[i]), 0, -1) or {}) do
        answer[#answer + 1] = { call("HGET", T .. WORKER .. id, "sequence"), worker_record(id) }
    end
end
for _, id in ipairs(ARGV[3] == "" and call("ZRANGE", T .. LIVE, 0, -1) or {}) do
    if wanted[call("HGET", T .. WORKER .. id, "status")] then
        answer[#answer + 1] = { call("HGET", T .. WORKER .. id, "sequence"), worker_record(id) }
    end
end
return answer

-- name: draining
-- owner: the id and the JSON of drain_until of each
local answer = {}
for _, id in ipairs(call("SMEMBERS", T .. DRAINING .. ARGV[3])) do
    answer[#answer + 1] = id
    answer[#answer + 1] = call("HGET", T .. TOLD .. id, "drain_until")
end
return answer

-- name: owners
local answer = {}
for _, owner in ipairs(call("SMEMBERS", T .. OWNERS)) do
    if call("EXISTS", T .. CLAIMS .. owner, T .. CREW .. owner, T .. LOCKED .. owner) > 0 then
        answer[#answer + 1] = owner
    else
        call("SREM", T .. OWNERS, owner)
    end
end
return answer

-- name: claims
-- owner
return call("HGETALL", T .. CLAIMS .. ARGV[3])

-- name: mark_lost needs crew
-- operation, owner (none: those whose lease has run out)
local operation, owner = ARGV[3], ARGV[4]
local known = again and call("GET", T .. DONE .. operation)
if known then
    return known
end
local ids
if owner == "" then
    ids = call("ZRANGEBYSCORE", T .. LIVE, "-inf", now)
else
    owner = string.sub(owner, 2)
    ids = call("SMEMBERS", T .. CREW .. owner)
    for _, key in ipairs(call("SMEMBERS", T .. LOCKED .. owner)) do
        call("DEL", T .. LOCK .. key)
        call("ZREM", T .. LOCKS, key)
    end
    call("DEL", T .. LOCKED .. owner)
end
local order = {}
for i, id in ipairs(ids) do
    local key = T .. WORKER .. id
    local found = call("HMGET", key, "owner", "heartbeat", "lease_until", "sequence")
    call("HSET", key, "status", "lost")
    list_worker(id, found[1], "lost", found[2], found[3])
    order[i] = { tonumber(found[4]), id }
end
table.sort(order, function(one, other) return one[1] < other[1] end)
for i, each in ipairs(order) do
    ids[i] = each[2]
end
return done(operation, ids)

-- name: lock
-- key, owner, lease
local name, owner = ARGV[3], ARGV[4]
local key = T .. LOCK .. name
local found = call("HMGET", key, "owner", "until")
if found[1] and found[1] ~= owner then
    if tonumber(found[2]) > now then
        return 0
    end
    call("SREM", T .. LOCKED .. found[1], name)
end
call("HSET", key, "owner", owner, "until", now + tonumber(ARGV[5]))
call("ZADD", T .. LOCKS, 0, name)
call("SADD", T .. LOCKED .. owner, name)
call("SADD", T .. OWNERS, owner)
return 1

-- name: unlock
-- key, owner
if call("HGET", T .. LOCK .. ARGV[3], "owner") == ARGV[4] then
    call("DEL", T .. LOCK .. ARGV[3])
    call("ZREM", T .. LOCKS, ARGV[3])
    call("SREM", T .. LOCKED .. ARGV[4], ARGV[3])
end
return 1

-- name: locks
-- prefix: key, owner, until of each that is held
local answer, first, last = {}, "[" .. ARGV[3], "(" .. ARGV[3] .. HIGHEST
for _, key in ipairs(call("ZRANGEBYLEX", T .. LOCKS, first, last)) do
    local found = call("HMGET", T .. LOCK .. key, "owner", "until")
    if tonumber(found[2]) > now then
        answer[#answer + 1] = key
        answer[#answer + 1] = found[1]
        answer[#answer + 1] = found[2]
    end
end
return answer
