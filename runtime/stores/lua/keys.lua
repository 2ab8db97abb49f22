-- Every key of the Redis store, and what all scripts share. A key is T .. KIND .. name; T is the store's hash tag, so that a
-- cluster keeps all of a store in one slot. `two` joins two names that may hold anything.
--
-- What people have written (data, results, messages, metadata) stands as JSON text that no script ever looks into.
-- Times are seconds since the epoch. An empty argument is none; "=x" is the text x where none is possible, too.
local T, call = KEYS[1], redis.call
local META = ":meta"              -- hash: schema, id of this store
local SEQUENCE = ":sequence"      -- counter of whatever needs an order
local DONE = ":done:"             -- {operation} what an operation answered that must not be done twice; for some minutes
local BELL = ":bell"              -- pub/sub channel of the topics that were rung

local POOLS = ":pools"            -- set
local POOL = ":pool:"             -- {pool} hash: completed, paused, second, last_arrival, last_end, startup
local ALL = ":all:"               -- {pool} zset of ids in push order
local ITEM = ":item:"             -- {id} hash
local DATA = ":data:"             -- {id} JSON [key, data]
local RESULT = ":result:"         -- {id} JSON
local ATTEMPTS = ":attempts:"     -- {id} list of the attempts that ended without a result, ATTEMPT fields each
local LINES = ":lines:"           -- {pool} set of the lines that are not empty
local LINE = ":line:"             -- {pool, line} zset of place .. id by priority; see line_of
local DELAYED = ":delayed:"       -- {pool} zset of ids by when they are due
local NEEDS = ":needs:"           -- {pool} hash: requirements → delayed items that have them
local LEASES = ":leases:"         -- {pool} zset of claimed ids by the end of the lease
local DEAD = ":dead:"             -- {pool} zset of ids in push order
local ERRORS = ":errors:"         -- {pool} hash: error type → dead items
local SECONDS = ":seconds:"       -- {pool} list of the seconds that were measured
local SECOND = ":second:"         -- {pool, second} hash of sums; h… are the bins of the histogram
local MANY = ":many"              -- zset of completed ids that have many attempts, by when they were completed

local OWNERS = ":owners"          -- set of owners that may have something
local CLAIMS = ":claims:"         -- {owner} hash: id → token
local SUSPECTS = ":suspects"      -- hash: owner → suspects that it holds
local HELD = ":held:"             -- {worker} set of the ids that it holds
local WORKERS = ":workers"        -- zset of ids in the order of registration
local WORKER = ":worker:"         -- {id} hash
local TOLD = ":told:"             -- {id} hash of metadata: name → JSON
local STAFF = ":staff:"           -- {JSON of a pool's name, status} zset of ids in the order of registration
local LIVE = ":live"              -- zset of live ids by the end of the lease
local CREW = ":crew:"             -- {owner} set of its live workers
local DRAINING = ":draining:"     -- {owner} set of those that were told to end
local ENDED = ":ended"            -- zset of ended ids by the last heartbeat

local LOCKS = ":locks"            -- zset of keys, by name
local LOCK = ":lock:"             -- {key} hash: owner, until
local LOCKED = ":locked:"         -- {owner} set of keys
local ENTRY = ":entry:"           -- {key} JSON
local CONFIGS = ":configs"        -- zset of the keys config:… by when they were put

local EXECUTIONS = ":executions"  -- zset, by name, of all that have a snapshot or an inbox
local SNAPSHOT = ":snapshot:"     -- {id} hash
local EVENT = ":event:"           -- {event} zset of ids, by name
local PARKED = ":parked:"         -- {channel} zset of the parked by when they parked
local WOKEN = ":woken:"           -- {channel} set of those that a message has woken
local IDLE = ":idle:"             -- {channel} set of the parked that have no message of it
local DUE = ":due"                -- zset of the parked that have one, by when they parked
local CHANNELS = ":channels"      -- zset of channels with messages, by name
local CHANNEL = ":channel:"       -- {channel} list of message ids
local MESSAGE = ":message:"       -- {id} hash: channel, data, created, refs (the inboxes that it is in)
local INBOX = ":inbox:"           -- {execution, channel} list of message ids
local INBOXES = ":inboxes:"       -- {execution} set of channels

local FLEETS = ":fleets"          -- set of those with decisions
local DECISIONS = ":decisions:"   -- {fleet} zset of ids in the order of their making
local DECISION = ":decision:"     -- {fleet} hash: id → JSON of its `at`, line feed, JSON
local TARGETS = ":targets"        -- hash: fleet → target

local LIVING = { active = true, terminating = true }
local REMEMBERED = 600            -- seconds for which an operation's answer is kept
local HIGHEST = "\255"            -- behind every name

-- ARGV[2]: whether it was sent before (1) or not (0), and the id of the store that its sender means, if it knows it.
if #ARGV[2] > 1 and call("HGET", T .. META, "id") ~= ARGV[2]:sub(2) then
    return redis.error_reply("GONE the store")
end

local now, again = tonumber(ARGV[1]), ARGV[2]:sub(1, 1) == "1"
if not now then
    local clock = call("TIME")
    now = clock[1] + clock[2] / 1000000
end

local function two(kind, first, second)
    return T .. kind .. #first .. ":" .. first .. ":" .. second
end

-- The digits of a number, all of them.
local function text(number)
    return string.format("%.17g", number)
end

-- Answer with `result`, and with the same if the operation comes again because that answer was lost.
local function done(operation, result)
    local answer = cjson.encode(result)
    call("SET", T .. DONE .. operation, answer, "EX", REMEMBERED)
    return answer
end
