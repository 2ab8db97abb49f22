-- Housekeeping, in named blocks: each looks at a bounded number of rows and deletes what nobody needs.

-- name: gc_workers
-- before, how many, how many to pass over: how many were looked at, how many went
local ids = call("ZRANGEBYSCORE", T .. ENDED, "-inf", "(" .. ARGV[3], "LIMIT", ARGV[5], ARGV[4])
local n = 0
for _, id in ipairs(ids) do
    if call("EXISTS", T .. HELD .. id) == 0 then
        n = n + 1
        local found = call("HMGET", T .. WORKER .. id, "pool", "listed")
        if found[2] then
            call("ZREM", two(STAFF, found[1], found[2]), id)
        end
        call("DEL", T .. WORKER .. id, T .. TOLD .. id, T .. ENTRY .. id .. "/result")
        call("ZREM", T .. ENDED, id)
        call("ZREM", T .. WORKERS, id)
    end
end
return { #ids, n }

-- name: gc_executions needs executions
-- before, how many, behind which id: the last id, how many went
local before = tonumber(ARGV[3])

local function split(id)
    local parts = {}
    for part in string.gmatch(id .. ":", "([^:]*):") do
        parts[#parts + 1] = part
    end
    return parts
end

-- leftovers.needless, word for word.
local function needless(id, event)
    local parts = split(id)
    local item = #parts >= 2 and parts[1] .. ":" .. parts[2]
    local state = item and call("HGET", T .. ITEM .. item, "state")
    if event == "=waiting" or event == "=waiting (stock)" or event == "=woken"
        or state == "ready" or state == "delayed" or state == "claimed" then
        return false
    end
    for n = state and 2 or 1, #parts - 1 do
        if call("EXISTS", T .. SNAPSHOT .. table.concat(parts, ":", 1, n)) == 1 then
            return false
        end
    end
    if state then
        return state == "completed" or (id == item and event == "=machine_end")
    end
    return event == "=machine_end" or #parts > 2
end

local ids, n = call("ZRANGEBYLEX", T .. EXECUTIONS, ARGV[5], "+", "LIMIT", 0, ARGV[4]), 0
for _, id in ipairs(ids) do
    local found = call("HMGET", T .. SNAPSHOT .. id, "event", "updated")
    local since = tonumber(found[2] or 0)
    for _, channel in ipairs(call("SMEMBERS", T .. INBOXES .. id)) do
        local newest = call("LINDEX", two(INBOX, id, channel), -1)
        since = math.max(since, tonumber(call("HGET", T .. MESSAGE .. newest, "created")))
    end
    local locked = tonumber(call("HGET", T .. LOCK .. id, "until") or 0) > now
    if since < before and not locked and needless(id, found[1]) then
        drop_one(id)
        n = n + 1
    end
end
return { ids[#ids] or false, n }

-- name: gc_decisions
-- before, fleet, how many are kept
local key, order, n = T .. DECISION .. ARGV[4], T .. DECISIONS .. ARGV[4], 0
for _, id in ipairs(call("ZRANGE", order, 0, -ARGV[5] - 1)) do
    local at = tonumber(string.match(call("HGET", key, id), "^[^\n]*"))
    if at and at < tonumber(ARGV[3]) then
        call("HDEL", key, id)
        call("ZREM", order, id)
        n = n + 1
    end
end
return n

-- name: gc_attempts
-- before, how many items: how many items were looked at, how many attempts went
local ids, n = call("ZRANGEBYSCORE", T .. MANY, "-inf", "(" .. ARGV[3], "LIMIT", 0, ARGV[4]), 0
for _, id in ipairs(ids) do
    local key = T .. ATTEMPTS .. id
    local left = (ATTEMPTS_KEPT - 1) * ATTEMPT
    n = n + math.max(0, (call("LLEN", key) - left) / ATTEMPT)
    call("LTRIM", key, -left, -1)
    call("ZREM", T .. MANY, id)
end
return { #ids, n }

-- name: old_configs
-- until when
return call("ZRANGEBYSCORE", T .. CONFIGS, "-inf", "(" .. ARGV[3])

-- name: bodies
-- behind which id, how many: the last id, and the bodies
local ids = call("ZRANGEBYLEX", T .. EXECUTIONS, ARGV[3], "+", "LIMIT", 0, ARGV[4])
local answer = { ids[#ids] or false }
for _, id in ipairs(ids) do
    answer[#answer + 1] = call("HGET", T .. SNAPSHOT .. id, "body") or nil
end
return answer

-- name: drop_configs
-- until when, then keys
local n = 0
for i = 4, #ARGV do
    local at = call("ZSCORE", T .. CONFIGS, ARGV[i])
    if at and tonumber(at) < tonumber(ARGV[3]) then
        call("DEL", T .. ENTRY .. ARGV[i])
        call("ZREM", T .. CONFIGS, ARGV[i])
        n = n + 1
    end
end
return n
