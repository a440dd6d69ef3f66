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

/// Keys: heartbeats, stream, count of releases. Arguments: group, consumer, the name under which
/// released entries wait, then the ids whose last delivery counts. Both consumers look dead from then
/// on; the idle time tells the first of two claimers from the second.
const RELEASE: &str = even_when_full!(
    r"local counted, left, page = {}, 0, nil
for i = 4, #ARGV do counted[ARGV[i]] = true end
repeat
  page = redis.call('XPENDING', KEYS[2], ARGV[1], '-', '+', 500, ARGV[2])
  for _, entry in ipairs(page) do
    local deliveries = entry[4]
    if not counted[entry[1]] then deliveries = math.max(deliveries - 1, 0) end
    redis.call('XCLAIM', KEYS[2], ARGV[1], ARGV[3], 0, entry[1], 'IDLE', 60000,
      'RETRYCOUNT', deliveries, 'JUSTID')
  end
  left = left + #page
until #page < 500
redis.call('HSET', KEYS[1], ARGV[2], 0)
if left > 0 then
  redis.call('HSET', KEYS[1], ARGV[3], 0)
  redis.call('SET', KEYS[3], string.format('%.0f', (redis.call('GET', KEYS[3]) or 0) + 1))
end
return left
"
);

/// Keys: count of releases, then leases. Arguments: token and name of whoever asks, how many
/// milliseconds an unused record is kept, then a step for each lease: `release`, nothing to hold it, or the version
/// that has lapsed. A record is `version fencing token holder`, the token `-` once it was given back.
/// Both numbers grow also when records are lost, unless the clock goes back then.
const LEASES: &str = even_when_full!(
    r"local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local number = function(n) return string.format('%.0f', n) end
local out = { redis.call('GET', KEYS[1]) or '0' }
for i = 2, #KEYS do
  local step = ARGV[i + 2]
  local version, fencing, token, holder =
    string.match(redis.call('GET', KEYS[i]) or '0 0 - ', '^(%d+) (%d+) (%S+) (.*)$')
  version, fencing = tonumber(version or 0), tonumber(fencing or 0)
  token, holder = token or '-', holder or ''
  local write = true
  if step == 'release' then
    if token == ARGV[1] then token, holder = '-', '' else write = false end
  elseif token == ARGV[1] then
    version = version + 1
  elseif token == '-' or step == number(version) then
    version = math.max(version + 1, now)
    fencing, token, holder = version, ARGV[1], ARGV[2]
  else
    write = false
  end
  if write then
    local record = number(version) .. ' ' .. number(fencing) .. ' ' .. token .. ' ' .. holder
    redis.call('SET', KEYS[i], record, 'PX', ARGV[3])
  end
  out[#out + 1] = { number(version), number(fencing), token == ARGV[1] and 1 or 0, holder }
end
return out
"
);

/// The scripts, hashed once.
pub(super) struct Scripts {
    pub(super) tick: Script,
    pub(super) renew: Script,
    pub(super) bury: Script,
    pub(super) remove: Script,
    pub(super) replay: Script,
    pub(super) life: Script,
    pub(super) recount: Script,
    pub(super) release: Script,
    pub(super) leases: Script,
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
            release: Script::new(RELEASE),
            leases: Script::new(LEASES),
        }
    }
}
