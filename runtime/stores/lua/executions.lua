-- Entries, snapshots and signals, in named blocks.

-- name: put
-- key, JSON, whether it is a config
call("SET", T .. ENTRY .. ARGV[3], ARGV[4])
if ARGV[5] == "1" then
    call("ZADD", T .. CONFIGS, now, ARGV[3])
end
return 1

-- name: get
-- key
return call("GET", T .. ENTRY .. ARGV[3])

-- name: drop
-- key
call("DEL", T .. ENTRY .. ARGV[3])
call("ZREM", T .. CONFIGS, ARGV[3])
return 1

-- name: save_snapshot needs executions
-- id, name, body, "=" and event, "=" and channel, fence: item and token, "=" and the prefix to drop, then acknowledged ids
local id, event, channel, item = ARGV[3], ARGV[6], ARGV[7], ARGV[8]
if item ~= "" then
    local found = call("HMGET", T .. ITEM .. string.sub(item, 2), "state", "token", "worker")
    if found[1] ~= "claimed" or found[2] ~= ARGV[9] then
        return { found[1] or "none", found[2] or "0", found[3] or "" }
    end
end
local key = T .. SNAPSHOT .. id
local before = call("HMGET", key, "event", "channel")
unlist(id, before[1], before[2])
call("DEL", key)
call("HSET", key, "name", ARGV[4], "body", ARGV[5], "updated", now)
call("ZADD", T .. EXECUTIONS, 0, id)
if event ~= "" then
    call("HSET", key, "event", event)
    call("ZADD", T .. EVENT .. event, 0, id)
end
if ARGV[10] ~= "" then
    drop_prefix(string.sub(ARGV[10], 2), id)
end
if event == "=machine_end" then
    drop_inbox(id)
else
    for i = 11, #ARGV do
        local where = call("HGET", T .. MESSAGE .. ARGV[i], "channel")
        local inbox = where and two(INBOX, id, where)
        if where and call("LREM", inbox, 1, ARGV[i]) == 1 then
            forget_message(ARGV[i])
            if call("EXISTS", inbox) == 0 then
                call("SREM", T .. INBOXES .. id, where)
            end
        end
    end
end
if channel ~= "" then
    channel = string.sub(channel, 2)
    call("HSET", key, "channel", channel)
    if event == "=waiting" then
        call("ZADD", T .. PARKED .. channel, now, id)
        watch(id, channel, now)
    elseif event == "=woken" then
        call("SADD", T .. WOKEN .. channel, id)
    end
end
return 1

-- name: load_snapshot
-- id
local key = T .. SNAPSHOT .. ARGV[3]
local found = call("HMGET", key, "name", "event", "channel", "updated")
return found[1] and { cjson.encode(found), call("HGET", key, "body") } or false

-- name: drop_snapshots needs executions
-- id
drop_tree(ARGV[3])
return 1

-- name: snapshots
-- "=" and event, "=" and channel (none: any), behind which id, how many to look at: the last id, and those that match
local event, channel = ARGV[3], ARGV[4]
local source = event == "" and T .. EXECUTIONS or T .. EVENT .. event
local ids = call("ZRANGEBYLEX", source, ARGV[5], "+", "LIMIT", 0, ARGV[6])
local answer = { ids[#ids] or false }
for _, id in ipairs(ids) do
    local found = call("HMGET", T .. SNAPSHOT .. id, "name", "event", "channel", "updated")
    if found[1] and (channel == "" or (found[3] and "=" .. found[3] == channel)) then
        found[5] = id
        answer[#answer + 1] = cjson.encode(found)
    end
end
return answer

-- name: parked
-- channel: those who are parked on it
local answer = {}
for _, id in ipairs(call("ZRANGE", T .. PARKED .. ARGV[3], 0, -1)) do
    local found = call("HMGET", T .. SNAPSHOT .. id, "name", "event", "channel", "updated")
    found[5] = id
    answer[#answer + 1] = cjson.encode(found)
end
return answer

-- name: send
-- id, channel, JSON
local id, channel = ARGV[3], ARGV[4]
if again and call("EXISTS", T .. DONE .. id) == 1 then
    return 1
end
call("SET", T .. DONE .. id, 1, "EX", REMEMBERED)
call("HSET", T .. MESSAGE .. id, "id", id, "channel", channel, "data", ARGV[5], "created", now)
call("RPUSH", T .. CHANNEL .. channel, id)
call("ZADD", T .. CHANNELS, 0, channel)
return 1

-- name: consume
-- operation, channel
local operation, channel = ARGV[3], ARGV[4]
local key, list = T .. DONE .. operation, T .. CHANNEL .. channel
if not (again and call("EXISTS", key) == 1) then
    local id = call("LPOP", list)
    if not id then
        return false
    end
    if call("EXISTS", list) == 0 then
        call("ZREM", T .. CHANNELS, channel)
    end
    call("RENAME", T .. MESSAGE .. id, key)
    call("EXPIRE", key, REMEMBERED)
end
return call("HMGET", key, "id", "channel", "data", "created")

-- name: peek
-- channel, the first and the last to show
local answer = {}
for i, id in ipairs(call("LRANGE", T .. CHANNEL .. ARGV[3], ARGV[4], ARGV[5])) do
    answer[i] = call("HMGET", T .. MESSAGE .. id, "id", "channel", "data", "created")
end
return answer

-- name: channels
return call("ZRANGE", T .. CHANNELS, 0, -1)

-- name: take needs handing
-- channel, waiter, then ids to skip
local channel, waiter, skip = ARGV[3], ARGV[4], {}
for i = 5, #ARGV do
    skip[ARGV[i]] = true
end
local inbox = two(INBOX, waiter, channel)
local function oldest()
    for _, id in ipairs(call("LRANGE", inbox, 0, -1)) do
        if not skip[id] then
            return call("HMGET", T .. MESSAGE .. id, "id", "channel", "data", "created")
        end
    end
    return false
end
local found = oldest()
if not found and call("EXISTS", T .. CHANNEL .. channel) == 1 then
    hand_out(channel, waiter)
    found = oldest()
end
return found

-- name: deliver needs handing
-- how many at most, then ids to skip
local most, skip, answer = tonumber(ARGV[3]), {}, {}
for i = 4, #ARGV do
    skip[ARGV[i]] = true
end
for _, channel in ipairs(call("ZRANGE", T .. CHANNELS, 0, -1)) do
    if call("EXISTS", T .. IDLE .. channel) == 1 then
        hand_out(channel)
    end
end
for _, id in ipairs(call("ZRANGE", T .. DUE, 0, most + #ARGV - 4)) do
    if #answer < most and not skip[id] then
        answer[#answer + 1] = id
    end
end
return answer
