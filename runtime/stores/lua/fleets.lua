-- Fleets and the store as a whole, in named blocks.

-- name: decide
-- fleet, id, JSON of its `at` (none: that of the one it replaces, or now), JSON, target (none: it sets none)
local fleet, id, at = ARGV[3], ARGV[4], ARGV[5]
local key, order = T .. DECISION .. fleet, T .. DECISIONS .. fleet
local known = call("HGET", key, id)
if at == "" then
    at = known and string.match(known, "^[^\n]*") or text(now)
end
call("HSET", key, id, at .. "\n" .. ARGV[6])
if not known then
    call("ZADD", order, call("INCR", T .. SEQUENCE), id)
    call("SADD", T .. FLEETS, fleet)
    for _, old in ipairs(call("ZRANGE", order, 0, -DECISIONS_MOST - 1)) do
        call("HDEL", key, old)
        call("ZREM", order, old)
    end
end
if ARGV[7] ~= "" then
    call("HSET", T .. TARGETS, fleet, ARGV[7])
end
return 1

-- name: decisions
-- fleet, how many
local answer = {}
for i, id in ipairs(call("ZRANGE", T .. DECISIONS .. ARGV[3], -ARGV[4], -1)) do
    answer[i] = call("HGET", T .. DECISION .. ARGV[3], id)
end
return answer

-- name: decision
-- fleet, id
return call("HGET", T .. DECISION .. ARGV[3], ARGV[4])

-- name: target
-- fleet
return call("HGET", T .. TARGETS, ARGV[3])

-- name: set_target
-- fleet, target (none: forget it)
if ARGV[4] == "" then
    call("HDEL", T .. TARGETS, ARGV[3])
else
    call("HSET", T .. TARGETS, ARGV[3], ARGV[4])
end
return 1

-- name: fleets
return { call("SMEMBERS", T .. FLEETS), call("HKEYS", T .. TARGETS) }

-- name: open
-- an id for the store if it is new (none: it must exist), the schema: both as they are, or nothing
local found = call("HMGET", T .. META, "schema", "id")
if not found[1] and ARGV[3] ~= "" then
    found = { ARGV[4], ARGV[3] }
    call("HSET", T .. META, "schema", found[1], "id", found[2])
end
return found[1] and found or false

-- name: now
return text(now)
