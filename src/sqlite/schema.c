/*
** The outbox's tables: each step brings them one version forward. An index lies in the same
** database as its table, so SQL qualifies its name and not the table's.
*/
#include "schema.h"

#include "../columns.h"
#include "derived.h"

/* Microseconds since the epoch; SQL's clock gives milliseconds. */
#define NOW_MS "CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER)"

/* A UUIDv7 for plain SQL that publishes. It rises with time, as the default generator's ids do. */
#define UUID_V7                                                                                    \
  "substr(printf('%012x', " NOW_MS "), 1, 8) || '-' || substr(printf('%012x', " NOW_MS "), 9)"     \
  " || '-7' || substr(hex(randomblob(2)), 2) || '-' || substr('89AB', 1 + (random() & 3), 1)"      \
  " || substr(hex(randomblob(2)), 2) || '-' || hex(randomblob(6))"

/* The check of the headers is rough because an application's SQLite may lack JSON functions. */
#define COLUMNS_V1                                                                                 \
  " id TEXT NOT NULL UNIQUE DEFAULT (lower(" UUID_V7 ")) CHECK (typeof(id) = 'text'),"             \
  " namespace TEXT NOT NULL DEFAULT '',"                                                           \
  " key TEXT,"                                                                                     \
  " payload BLOB,"                                                                                 \
  " headers TEXT CHECK (headers IS NULL OR headers GLOB '{*}'),"                                   \
  " created_at INTEGER NOT NULL DEFAULT (" NOW_MS " * 1000),"                                      \
  " attempts INTEGER NOT NULL DEFAULT 0,"                                                          \
  " last_error TEXT"

/*
** Version 1. The entries' seq is AUTOINCREMENT because it must never come twice: a lease may still
** cover it. In the delayed table seq only keeps the order. For an entry that waits for its retry,
** `position` is the seq that it had among the ready ones.
*/
static const char VERSION_1[] =
    "CREATE TABLE @schema (version INTEGER NOT NULL);"
    "CREATE TABLE @entries (seq INTEGER PRIMARY KEY AUTOINCREMENT," COLUMNS_V1 ");"
    "CREATE TABLE @delayed (seq INTEGER PRIMARY KEY," COLUMNS_V1 ","
    " due_at INTEGER NOT NULL, position INTEGER);"
    "CREATE INDEX @delayed_due_at ON @@delayed (due_at);"
    "CREATE INDEX @delayed_key ON @@delayed (namespace, key, position);"
    "CREATE INDEX @delayed_position ON @@delayed (position);"
    "CREATE TABLE @dead (seq INTEGER PRIMARY KEY," COLUMNS_V1 ", died_at INTEGER NOT NULL);"
    "CREATE TABLE @leases (first_seq INTEGER PRIMARY KEY, last_seq INTEGER NOT NULL,"
    " processor_id TEXT NOT NULL, deadline INTEGER NOT NULL, claimed_at INTEGER NOT NULL,"
    " batch TEXT);";

/*
** Version 2. `delayed_at` is when a retry was delayed; a scheduled message has none. Only the few
** that have one are in the index. Of those that are there already it is not known: an hour before
** they fall due, which is as long as the default options delay an entry.
*/
static const char VERSION_2[] =
    "ALTER TABLE @delayed ADD COLUMN delayed_at INTEGER;"
    "UPDATE @delayed SET delayed_at = due_at - 3600000000 WHERE position IS NOT NULL;"
    "CREATE INDEX @delayed_delayed_at ON @@delayed (delayed_at) WHERE delayed_at IS NOT NULL;";

/*
** Version 3. A claim is a box: namespaces, classes of keys (a bit mask), and an interval of seq.
** Its number never comes twice: a processor that has lost its claim finds no other in its place.
**
** The claims of before are carried over, but what was in hand under them is forgotten: it was named
** in another way. So it is delivered again, uncharged, where its processor dies now. A processor of
** the old version that still runs looks at the version no more; its next claim is refused by a
** trigger.
*/
#define RAISE_NEWER                                                                                \
  " BEGIN SELECT RAISE(ABORT, 'these tables are from a newer outbox: restart this process with "   \
  "it'); END;"

static const char VERSION_3[] =
    "CREATE TABLE @claims (lease INTEGER PRIMARY KEY AUTOINCREMENT, processor_id TEXT NOT NULL,"
    " namespaces TEXT NOT NULL, classes INTEGER NOT NULL, first_seq INTEGER NOT NULL,"
    " last_seq INTEGER NOT NULL, deadline INTEGER NOT NULL, claimed_at INTEGER NOT NULL,"
    " held TEXT);"
    "CREATE INDEX @claims_first_seq ON @@claims (first_seq);"
    "INSERT INTO @claims (processor_id, namespaces, classes, first_seq, last_seq, deadline,"
    " claimed_at) SELECT processor_id, '', -1, max(first_seq, -9223372036854775807), last_seq,"
    " deadline, claimed_at FROM @leases ORDER BY first_seq;"
    "DROP TABLE @leases;"
    "CREATE VIEW @leases AS SELECT first_seq, last_seq, processor_id, deadline, claimed_at,"
    " held AS batch FROM @@claims WHERE 0;"
    "CREATE TRIGGER @leases_insert INSTEAD OF INSERT ON @@leases" RAISE_NEWER
    "CREATE TRIGGER @leases_update INSTEAD OF UPDATE ON @@leases" RAISE_NEWER
    "CREATE TRIGGER @leases_delete INSTEAD OF DELETE ON @@leases" RAISE_NEWER
    "DROP INDEX @delayed_position;"
    "CREATE INDEX @delayed_position ON @@delayed (position, due_at);";

/*
** Version 4. A subscription: what is published to a namespace becomes a copy in another. A pause:
** nothing of a namespace is handed out. An outage: a processor has found a namespace down. See
** subscribe.c, pause.c and outage.c.
*/
static const char VERSION_4[] =
    "ALTER TABLE @entries ADD COLUMN source_id TEXT;"
    "ALTER TABLE @delayed ADD COLUMN source_id TEXT;"
    "ALTER TABLE @dead ADD COLUMN source_id TEXT;"
    "CREATE TABLE @subscriptions (namespace TEXT NOT NULL, copy TEXT NOT NULL,"
    " PRIMARY KEY (namespace, copy)) WITHOUT ROWID;"
    "CREATE TABLE @pauses (namespace TEXT NOT NULL PRIMARY KEY, paused_at INTEGER NOT NULL)"
    " WITHOUT ROWID;"
    "CREATE TABLE @outages (namespace TEXT NOT NULL, lease INTEGER NOT NULL,"
    " down_since INTEGER NOT NULL, error TEXT, PRIMARY KEY (namespace, lease)) WITHOUT ROWID;";

/*
** Version 5. The table @ready takes the place of the table @entries, which becomes a view of it. It
** has no index on generated ids, see derived.h, and no AUTOINCREMENT, which would write its counter
** for each message: see NEXT_SEQ.
**
** In SQLite the last row's seq cannot be the highest integer: the next would be a random one.
*/
#define READY_COLUMNS MESSAGE_COLUMNS_BUT_ID OTHER_COLUMNS
#define OWN_ID_CHECK "CHECK (id IS NOT NULL OR " IS_DERIVABLE("") ")"

static const char VERSION_5[] =
    "ALTER TABLE @schema ADD COLUMN mark INTEGER NOT NULL DEFAULT 0;"
    "DELETE FROM @schema;"
    "INSERT INTO @schema (version, mark) SELECT 5, coalesce(max(seq), 0) FROM main.sqlite_sequence"
    " WHERE name = '@@entries' COLLATE NOCASE;"
    "CREATE TABLE @ready (seq INTEGER PRIMARY KEY CHECK (seq < 9223372036854775807),"
    " id TEXT CONSTRAINT id_must_be_new_text CHECK (id IS NULL OR typeof(id) = 'text'),"
    " namespace TEXT NOT NULL DEFAULT '',"
    " key TEXT,"
    " payload BLOB,"
    " headers TEXT CHECK (headers IS NULL OR headers GLOB '{*}'),"
    " created_at INTEGER NOT NULL DEFAULT (" NOW_MS " * 1000),"
    " attempts INTEGER NOT NULL DEFAULT 0,"
    " last_error TEXT,"
    " source_id TEXT,"
    " nonce INTEGER DEFAULT (random() & " DERIVED_NONCE_MAX_SQL "),"
    " " OWN_ID_CHECK ");"
    "INSERT INTO @ready (seq, id, " READY_COLUMNS ", nonce)"
    " SELECT seq, id, " READY_COLUMNS ", NULL FROM @entries ORDER BY seq;"
    "CREATE UNIQUE INDEX @ready_id ON @@ready (id) WHERE id IS NOT NULL;"
    "DROP TRIGGER IF EXISTS @copy;"
    "DROP TABLE @entries;";

/*
** Version 6. The library reads the subscriptions itself: `fans_out` says whether there are any. For
** plain SQL the view has three triggers, of which one runs: it inserts a message, or a scheduled
** one, or the copies.
*/
#define VALUES_BUT_ID                                                                              \
  "coalesce(NEW.namespace, ''), NEW.key, NEW.payload, NEW.headers,"                                \
  " coalesce(NEW.created_at, " NOW_MS " * 1000), coalesce(NEW.attempts, 0), NEW.last_error,"       \
  " NEW.source_id"
#define NEXT NEXT_SEQ("@@")
#define MARK_LAST MARK_SEQ("@@", "9223372036854775807")
#define MARK_OLD MARK_SEQ("@@", "OLD.seq")

#define HAS_SUBSCRIPTIONS                                                                          \
  "EXISTS (SELECT 1 FROM @@subscriptions WHERE namespace = coalesce(NEW.namespace, ''))"

/*
** The id that is given, or a BLOB, which is refused, where a row has it, or a copy of it, and does
** not store it. Only the last 2^30 places are looked at.
*/
#define DIGIT(place) "(instr('0123456789abcdef', substr(NEW.id, " #place ", 1)) - 1)"
#define HIGH_BITS                                                                                  \
  "((" DIGIT(20) " & 3) << 28) + (" DIGIT(21) " << 24) + (" DIGIT(22) " << 20) + (" DIGIT(         \
      23) " << 16)"
#define LOW_BITS "(" DIGIT(25) " << 12) + (" DIGIT(26) " << 8) + (" DIGIT(27) " << 4) + " DIGIT(28)
#define SEQ_BITS "(" HIGH_BITS " + " LOW_BITS ")"
#define PLACES                                                                                     \
  "CASE WHEN length(NEW.id) = 36 AND NOT " HAS_SUBSCRIPTIONS " THEN 0 ELSE " COPY_SPAN_SQL " END"
#define IS_HIDDEN                                                                                  \
  "(NEW.id GLOB '*-*-7*-[89ab]*-*' AND (length(NEW.id) = 36 OR substr(NEW.id, 37, 1) = ':')"       \
  " AND EXISTS (SELECT 1 FROM (SELECT max(seq) - ((max(seq) - " SEQ_BITS                           \
  ") & " DERIVED_SEQ_BITS_SQL ") AS place FROM @@ready) CROSS JOIN @@entries AS e"                 \
  " WHERE e.seq BETWEEN place AND place + " PLACES " AND (e.id = NEW.id OR e.id IN"                \
  " (SELECT NEW.id || ':' || copy FROM @@subscriptions"                                            \
  " WHERE namespace = coalesce(NEW.namespace, '')))))"
#define NEW_ID "CASE WHEN " IS_HIDDEN " THEN x'' ELSE NEW.id END"
#define IS_LATER "coalesce(NEW.deliver_at > " NOW_MS " * 1000, 0)"

static const char VERSION_6[] =
    "ALTER TABLE @schema ADD COLUMN fans_out INTEGER NOT NULL DEFAULT 0;"
    "UPDATE @schema SET fans_out = EXISTS (SELECT 1 FROM @subscriptions);"
    "DROP TRIGGER IF EXISTS @copy; DROP TRIGGER IF EXISTS @copy_scheduled;"
    "DROP VIEW IF EXISTS @entries;"
    "CREATE VIEW @entries AS SELECT seq, coalesce(id, " COPY_ID
    ", " DERIVED_ID("") ") AS id, " READY_COLUMNS ", NULL AS deliver_at FROM @@ready;";

#define IS_COPIED "(NEW.source_id IS NULL AND " HAS_SUBSCRIPTIONS ")"
#define INSTEAD_OF_INSERT " INSTEAD OF INSERT ON @@entries WHEN "
#define CHECK_DELIVER_AT                                                                           \
  " SELECT RAISE(ABORT, 'deliver_at must be a number: microseconds since the Unix epoch')"         \
  " WHERE typeof(NEW.deliver_at) IN ('text', 'blob');"

static const char VERSION_6_INSERT[] =
    "CREATE TRIGGER @entries_insert" INSTEAD_OF_INSERT "NOT " IS_LATER " AND NOT " IS_COPIED
    " BEGIN" CHECK_DELIVER_AT " " MARK_LAST " AND (NEW.seq IS NOT NULL OR EXISTS"
    " (SELECT 1 FROM @@ready WHERE id = NEW.id));" /* it may be replaced */
    " INSERT INTO @@ready (seq, id, " READY_COLUMNS ")"
    " SELECT coalesce(NEW.seq, " NEXT "), coalesce(" NEW_ID ", CASE WHEN NEW.source_id IS NOT NULL"
    " THEN lower(" UUID_V7 ") END), " VALUES_BUT_ID "; END;";

static const char VERSION_6_SCHEDULE[] =
    "CREATE TRIGGER @entries_schedule" INSTEAD_OF_INSERT IS_LATER " BEGIN" CHECK_DELIVER_AT
    " INSERT INTO @@delayed (id, " READY_COLUMNS ", due_at) SELECT"
    " coalesce(" NEW_ID ", lower(" UUID_V7 ")), " VALUES_BUT_ID ", NEW.deliver_at; END;";

/*
** LIMIT has SQLite make the id once, not for each copy. A time of which no id can be derived gives
** none, so that the copies are refused as the message itself would be.
*/
#define NEW_TIME "coalesce(NEW.created_at, 0)"
#define SOURCE_ID                                                                                  \
  "coalesce(" NEW_ID ", CASE WHEN CAST(" NEW_TIME " AS INTEGER) = " NEW_TIME " AND CAST(" NEW_TIME \
  " AS INTEGER) BETWEEN 0 AND " DERIVED_TIME_END_SQL " - 1 THEN lower(" UUID_V7 ") END)"
#define COPY_COLUMNS "(id, " MESSAGE_COLUMNS_BUT_ID ", source_id, "
#define SELECT_COPIES                                                                              \
  "SELECT CASE typeof(source.id) WHEN 'blob' THEN x'' ELSE source.id || ':' || s.copy END,"        \
  " s.copy, NEW.key, NEW.payload, NEW.headers,"                                                    \
  " coalesce(NEW.created_at, " NOW_MS " * 1000), source.id, "
#define FROM_SUBSCRIPTIONS                                                                         \
  " FROM (SELECT " SOURCE_ID " AS id LIMIT 1) AS source CROSS JOIN @@subscriptions AS s"           \
  " WHERE s.namespace = coalesce(NEW.namespace, '') ORDER BY s.copy; END;"
#define IS_FIRST                                                                                   \
  "s.copy = (SELECT min(copy) FROM @@subscriptions WHERE namespace = coalesce(NEW.namespace, ''))"

static const char VERSION_6_COPY[] =
    "CREATE TRIGGER @entries_copy" INSTEAD_OF_INSERT "NOT " IS_LATER " AND " IS_COPIED
    " BEGIN" CHECK_DELIVER_AT " INSERT INTO @@ready " COPY_COLUMNS "seq) " SELECT_COPIES
    "CASE WHEN " IS_FIRST " THEN " NEXT " END" FROM_SUBSCRIPTIONS;

/*
** This trigger makes the copies of scheduled messages for all who publish, also for the library,
** because such messages are rare.
*/
static const char VERSION_6_COPY_SCHEDULED[] =
    "CREATE TRIGGER @copy_scheduled BEFORE INSERT ON @@delayed WHEN NEW.source_id IS NULL"
    " AND NEW.position IS NULL AND typeof(NEW.id) IN ('text', 'null') AND EXISTS"
    " (SELECT 1 FROM @@subscriptions WHERE namespace = NEW.namespace) BEGIN"
    " INSERT INTO @@delayed (" MESSAGE_COLUMNS
    ", source_id, due_at) SELECT NEW.id || ':' || s.copy,"
    " s.copy, NEW.key, NEW.payload, NEW.headers, NEW.created_at, NEW.id, NEW.due_at"
    " FROM @@subscriptions AS s WHERE s.namespace = NEW.namespace ORDER BY s.copy;"
    " SELECT RAISE(IGNORE); END;";

static const char VERSION_6_CHANGES[] =
    "CREATE TRIGGER @entries_update INSTEAD OF UPDATE ON @@entries BEGIN"
    " SELECT RAISE(ABORT, 'deliver_at cannot be updated') WHERE NEW.deliver_at IS NOT NULL;"
    " " MARK_LAST ";"
    " UPDATE @@ready SET seq = NEW.seq, id = CASE WHEN NEW.id IS NULL AND NEW.source_id IS NOT "
    "NULL THEN"
    " OLD.id WHEN NEW.id IS NOT OLD.id THEN " NEW_ID
    " WHEN NEW.seq IS OLD.seq AND NEW.created_at IS OLD.created_at AND NEW.namespace IS"
    " OLD.namespace AND NEW.source_id IS OLD.source_id THEN id ELSE NEW.id END,"
    " namespace = NEW.namespace, key = NEW.key, payload = NEW.payload, headers = NEW.headers,"
    " created_at = NEW.created_at, attempts = NEW.attempts, last_error = NEW.last_error,"
    " source_id = NEW.source_id WHERE seq = OLD.seq; END;"
    "CREATE TRIGGER @entries_delete INSTEAD OF DELETE ON @@entries BEGIN"
    " " MARK_OLD "; DELETE FROM @@ready WHERE seq = OLD.seq; END;";

const char *const schema_steps[][SCHEMA_SCRIPTS] = {{VERSION_1},
                                                    {VERSION_2},
                                                    {VERSION_3},
                                                    {VERSION_4},
                                                    {VERSION_5},
                                                    {VERSION_6, VERSION_6_INSERT,
                                                     VERSION_6_SCHEDULE, VERSION_6_COPY,
                                                     VERSION_6_COPY_SCHEDULED, VERSION_6_CHANGES}};
const int schema_version = sizeof schema_steps / sizeof *schema_steps;
