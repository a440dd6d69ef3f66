//! Steps that must be atomic and that no single command makes.

use redis::Script;

use super::reserve::even_when_full;

/// Keys: heartbeats, stream. Arguments: group, consumer. Notes the heartbeat by the server's clock
/// (none for the empty name) and answers the time, all heartbeats, and how many entries each consumer has pending.
const TICK: &str = even_when_full!(
    r"local t = redis.call('TIME')
local now = string.format('%.0f', t[1] * 1000 + math.floor(t[2] / 1000))
local pending = redis.call('XPENDING', KEYS[2], ARGV[1])
if ARGV[2] ~= '' then redis.call('HSET', KEYS[1], ARGV[2], now, '*', now) end
return { now, redis.call('HGETALL', KEYS[1]), pending[4] or {} }
"
);

/// Keys: stream. Arguments: group, consumer, entry ids. Resets the idle time of those entries that
/// are still this consumer's: one that was taken over meanwhile is not stolen back.
const RENEW: &str = r"
local mine = {}
for i = 3, #ARGV do
  local p = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[i], ARGV[i], 1)
  if p[1] and p[1][2] == ARGV[2] then mine[#mine + 1] = ARGV[i] end
end
if #mine == 0 then return 0 end
redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, unpack(mine), 'JUSTID')
return #mine
";

/// Keys: stream, dead-letter stream. Arguments: group, entry id, then further fields and values.
/// Acknowledges and appends, unless somebody else has acknowledged before.
const BURY: &str = even_when_full!(
    r"local entry = redis.call('XRANGE', KEYS[1], ARGV[2], ARGV[2])
if redis.call('XACK', KEYS[1], ARGV[1], ARGV[2]) == 0 then return 0 end
local fields = {}
if entry[1] then fields = entry[1][2] end
for i = 3, #ARGV do fields[#fields + 1] = ARGV[i] end
redis.call('XADD', KEYS[2], '*', unpack(fields))
return 1
"
);

/// Keys: dead-letter stream, stream. Arguments: the dead letter's id, then fields and values. Appends,
/// then removes the dead letter; answers the new id, or nil when it was no longer there. The append
/// comes first because it may be refused (memory, permissions); the removal then does not happen.
const REPLAY: &str = r"
if not redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1])[1] then return false end
if redis.acl_check_cmd and not redis.acl_check_cmd('XDEL', KEYS[1], ARGV[1]) then
  return redis.error_reply('NOPERM this user may not XDEL from the dead-letter stream')
end
local id = redis.call('XADD', KEYS[2], '*', unpack(ARGV, 2))
redis.call('XDEL', KEYS[1], ARGV[1])
return id
";

/// Keys: heartbeats, stream. Arguments: group, consumer, milliseconds of silence. Removes the
/// consumer only when it is silent for so long and nothing is pending: removing it otherwise would
/// take its entries out of every list.
const REMOVE: &str = r"
local beat = redis.call('HGET', KEYS[1], ARGV[2])
if not beat then return 0 end
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
if now - tonumber(beat) < tonumber(ARGV[3]) then return 0 end
if redis.call('XPENDING', KEYS[2], ARGV[1], '-', '+', 1, ARGV[2])[1] then return 0 end
redis.call('XGROUP', 'DELCONSUMER', KEYS[2], ARGV[1], ARGV[2])
redis.call('HDEL', KEYS[1], ARGV[2])
return 1
";

/// Keys: heartbeats, stream. Arguments: group. The oldest pending entry, and the milliseconds since
/// any consumer was heard of. A group never heard of is noted as heard of now.
const LIFE: &str = even_when_full!(
    r"local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local pending = redis.call('XPENDING', KEYS[2], ARGV[1])
redis.call('HSETNX', KEYS[1], '*', string.format('%.0f', now))
local silent = now - tonumber(redis.call('HGET', KEYS[1], '*'))
for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[2], ARGV[1])) do
  for i = 1, #consumer, 2 do
    if consumer[i] == 'idle' and consumer[i + 1] < silent then silent = consumer[i + 1] end
  end
end
return { pending[2] or '', string.format('%.0f', math.max(silent, 0)) }
"
);

/// Keys: stream. Arguments: group, limit. Counts what the group has not read yet, up to the limit.
///
/// The server is not told (`XGROUP SETID ENTRIESREAD`): what it then writes to its append-only file
/// for later reads leaves that number as it is, so that after the next restart it is wrong and
/// nobody knows.
const RECOUNT: &str = r"
local last, name
for _, group in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  for i = 1, #group, 2 do
    if group[i] == 'name' then name = group[i + 1] end
    if group[i] == 'last-delivered-id' and name == ARGV[1] then last = group[i + 1] end
  end
end
if not last then return 0 end
local lag, at = 0, last
repeat
  local page = redis.call('XRANGE', KEYS[1], '(' .. at, '+', 'COUNT', 1000)
  lag = lag + #page
  if #page > 0 then at = page[#page][1] end
until #page < 1000 or lag >= tonumber(ARGV[2])
return lag
";

/// The scripts, hashed once.
pub(super) struct Scripts {
    pub(super) tick: Script,
    pub(super) renew: Script,
    pub(super) bury: Script,
    pub(super) remove: Script,
    pub(super) replay: Script,
    pub(super) life: Script,
    pub(super) recount: Script,
}

impl Scripts {
    pub(super) fn new() -> Self {
        Self {
            tick: Script::new(TICK),
            renew: Script::new(RENEW),
            bury: Script::new(BURY),
            remove: Script::new(REMOVE),
            replay: Script::new(REPLAY),
            life: Script::new(LIFE),
            recount: Script::new(RECOUNT),
        }
    }
}
