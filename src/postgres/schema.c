/*
** The tables. An entry's row lies in the table of its state: ready, delayed or dead.
**
** Order: a publisher takes the lock of its key's class before the sequence gives the entry its
** `seq`, and keeps it until its commit is visible. So, within a key, the order of seq is the order
** of commits, and what a reader sees of a key has no gap. And it has the number of its transaction
** before it draws a seq: that tells a reader which seqs can still appear, see cursor.c.
**
** Rows of the same key lie in the same partition, and a partition is one processor's.
*/
#include "schema.h"

#include <stddef.h>

/* The columns of an entry in all three tables. A payload that is no UTF-8 is in payload_bytes. */
#define COLUMNS                                                                                    \
  " id text NOT NULL DEFAULT @uuid7(), namespace text NOT NULL DEFAULT '', key text,"              \
  " payload text, payload_bytes bytea, headers text CHECK (headers IS NULL OR headers LIKE "       \
  "'{%}'),"                                                                                        \
  " created_at bigint NOT NULL DEFAULT @now(), attempts bigint NOT NULL DEFAULT 0,"                \
  " last_error text, source_id text"

/* The tables are small and change all the time. */
#define VACUUM                                                                                     \
  " WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000,"                \
  " autovacuum_vacuum_cost_delay = 0, autovacuum_vacuum_insert_threshold = -1)"

/*
** Functions that an application's INSERT runs do so with the rights of the tables' owner, and find
** nothing but what they name.
*/
#define FUNCTION " LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$"

static const char TABLES[] =
    "CREATE FUNCTION @now() RETURNS bigint LANGUAGE sql VOLATILE PARALLEL SAFE AS"
    " $$ SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint $$;"
    /* A UUIDv7: it rises with time, which keeps the index on ids small. */
    "CREATE FUNCTION @uuid7() RETURNS text LANGUAGE sql VOLATILE PARALLEL SAFE AS"
    " $$ SELECT encode(set_bit(set_bit(overlay(uuid_send(gen_random_uuid()) PLACING"
    " substring(int8send(floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint) FROM 3)"
    " FROM 1 FOR 6), 52, 1), 53, 1), 'hex')::uuid::text $$;"
    "CREATE FUNCTION @hash(namespace text, key text) RETURNS bigint LANGUAGE sql IMMUTABLE"
    " PARALLEL SAFE AS $$ SELECT hashtextextended(key, hashtextextended(namespace, 0)) $$;"
    /* One row. Its space is the first number of the outbox's advisory locks. */
    "CREATE TABLE @schema (version bigint NOT NULL, space bigint NOT NULL,"
    " ordering text NOT NULL CHECK (ordering IN ('none', 'key', 'strict')));"
    "INSERT INTO @schema VALUES (0, #, 'key');"
    "CREATE SEQUENCE @seq;"
    "CREATE TABLE @entries (partition smallint NOT NULL, seq bigint NOT NULL," COLUMNS ","
    " PRIMARY KEY (partition, seq), UNIQUE (id))" VACUUM ";"
    /* Of a retry, seq is the place that it had, and position is the same. */
    "CREATE TABLE @delayed (seq bigint PRIMARY KEY DEFAULT nextval('@seq')," COLUMNS ","
    " due_at bigint NOT NULL, position bigint, partition smallint, delayed_at bigint,"
    " UNIQUE (id))" VACUUM ";"
    "CREATE INDEX @@delayed_due_at ON @delayed (due_at, seq);"
    "CREATE INDEX @@delayed_key ON @delayed (namespace, key, position) WHERE position IS NOT NULL;"
    "CREATE INDEX @@delayed_delayed_at ON @delayed (delayed_at) WHERE delayed_at IS NOT NULL;"
    "CREATE TABLE @dead (seq bigint PRIMARY KEY," COLUMNS ", died_at bigint NOT NULL, UNIQUE (id));"
    /* What a processor holds: partitions, by a mask, of a set of namespaces. */
    "CREATE TABLE @claims (lease bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,"
    " processor_id text NOT NULL, namespaces text NOT NULL, classes bigint NOT NULL,"
    " by_hand boolean NOT NULL, deadline bigint NOT NULL, claimed_at bigint NOT NULL,"
    " overtime boolean NOT NULL DEFAULT false) WITH (fillfactor = 20);"
    /* What it has in hand. A row for each batch: one that is written again and again gets slow. */
    "CREATE TABLE @batches (number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,"
    " lease bigint NOT NULL, partitions smallint[] NOT NULL, places bigint[] NOT NULL);"
    "CREATE TABLE @subscriptions (namespace text, copy text, PRIMARY KEY (namespace, copy));"
    "CREATE TABLE @pauses (namespace text PRIMARY KEY, paused_at bigint NOT NULL);"
    "CREATE TABLE @outages (namespace text, lease bigint, down_since bigint NOT NULL, error text,"
    " PRIMARY KEY (namespace, lease));";

/* Gives a row of plain SQL its place; what is published to a subscribed namespace is copied. */
static const char PLACE[] =
    "CREATE FUNCTION @place() RETURNS trigger" FUNCTION " DECLARE h bigint; mode text;"
    " BEGIN"
    "  IF NEW.source_id IS NULL AND EXISTS"
    "   (SELECT FROM @subscriptions AS s WHERE s.namespace = NEW.namespace) THEN"
    "   INSERT INTO @entries (id, namespace, key, payload, payload_bytes, headers, created_at,"
    "    source_id) SELECT NEW.id || ':' || s.copy, s.copy, NEW.key, NEW.payload,"
    "    NEW.payload_bytes, NEW.headers, NEW.created_at, NEW.id FROM @subscriptions AS s"
    "    WHERE s.namespace = NEW.namespace ORDER BY s.copy;"
    "   RETURN NULL;"
    "  END IF;"
    "  IF EXISTS (SELECT FROM @delayed AS d WHERE d.id = NEW.id) THEN"
    "   RAISE unique_violation USING MESSAGE = 'an entry with this id is delayed',"
    "    CONSTRAINT = '@@delayed_id_key';"
    "  END IF;"
    "  PERFORM pg_current_xact_id();"
    "  SELECT ordering INTO mode FROM @schema;"
    "  IF NEW.key IS NOT NULL THEN h := @hash(NEW.namespace, NEW.key); END IF;"
    "  IF mode = 'strict' THEN PERFORM pg_advisory_xact_lock(#, 1024);"
    "  ELSIF mode = 'key' AND h IS NOT NULL THEN"
    "   PERFORM pg_advisory_xact_lock(#, (h & 1023)::int);"
    "  END IF;"
    "  NEW.seq := nextval('@seq');"
    "  NEW.partition := coalesce(h, NEW.seq) & 63;"
    "  RETURN NEW;"
    " END $$;"
    "CREATE TRIGGER @@place BEFORE INSERT ON @entries FOR EACH ROW WHEN (NEW.partition IS NULL)"
    " EXECUTE FUNCTION @place();";

/* The same for what is scheduled, which has no place yet. */
static const char SCHEDULE[] =
    "CREATE FUNCTION @schedule() RETURNS trigger" FUNCTION " BEGIN"
    "  IF EXISTS (SELECT FROM @subscriptions AS s WHERE s.namespace = NEW.namespace) THEN"
    "   INSERT INTO @delayed (id, namespace, key, payload, payload_bytes, headers, created_at,"
    "    source_id, due_at) SELECT NEW.id || ':' || s.copy, s.copy, NEW.key, NEW.payload,"
    "    NEW.payload_bytes, NEW.headers, NEW.created_at, NEW.id, NEW.due_at"
    "    FROM @subscriptions AS s WHERE s.namespace = NEW.namespace ORDER BY s.copy;"
    "   RETURN NULL;"
    "  END IF;"
    "  RETURN NEW;"
    " END $$;"
    "CREATE TRIGGER @@schedule BEFORE INSERT ON @delayed FOR EACH ROW"
    " WHEN (NEW.position IS NULL AND NEW.source_id IS NULL) EXECUTE FUNCTION @schedule();";

/* Tells processors that wait, if there are any: a NOTIFY keeps all commits in line. */
static const char RING[] = "CREATE FUNCTION @ring() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
                           "  IF pg_catalog.pg_try_advisory_lock(#, 1026) THEN"
                           "   PERFORM pg_catalog.pg_advisory_unlock(#, 1026);"
                           "  ELSE PERFORM pg_catalog.pg_notify('outbox_#', ''); END IF;"
                           "  RETURN NULL;"
                           " END $$;"
                           "CREATE TRIGGER @@ring AFTER INSERT ON @entries FOR EACH STATEMENT"
                           " EXECUTE FUNCTION @ring();"
                           "CREATE TRIGGER @@ring AFTER INSERT ON @delayed FOR EACH STATEMENT"
                           " EXECUTE FUNCTION @ring();"
                           "CREATE TRIGGER @@ring AFTER DELETE ON @pauses FOR EACH STATEMENT"
                           " EXECUTE FUNCTION @ring();";

/* Refuses ids, and those of their copies, that any table has, or two messages of the call. */
static const char REFUSE[] =
    "CREATE FUNCTION @refuse(ids text[], namespaces text[]) RETURNS void LANGUAGE plpgsql AS $$"
    " BEGIN"
    "  IF EXISTS (SELECT FROM unnest(ids, namespaces) WITH ORDINALITY AS m (id, namespace, o)"
    "   LEFT JOIN @subscriptions AS s ON s.namespace = m.namespace"
    "   CROSS JOIN LATERAL (SELECT m.id UNION ALL SELECT m.id || ':' || s.copy"
    "    WHERE s.copy IS NOT NULL) AS i (id)"
    "   GROUP BY i.id HAVING min(m.o) < max(m.o)"
    "    OR EXISTS (SELECT FROM @entries AS e WHERE e.id = i.id)"
    "    OR EXISTS (SELECT FROM @delayed AS e WHERE e.id = i.id)"
    "    OR EXISTS (SELECT FROM @dead AS e WHERE e.id = i.id)) THEN"
    "   RAISE 'an entry with this id is already in the outbox' USING ERRCODE = 'OB001';"
    "  END IF;"
    " END $$;";

/*
** For an application that publishes with one INSERT. Refuses what must not be published, takes the
** locks of the keys' classes, sorted, and returns the place of each message, or of each copy of it;
** `late_until` where it is not due yet. So the trigger need not look at each row, and the
** application needs no right but to insert. `known` says which ids may be there already, NULL that
** none can; `made_at` is the time, NULL the server's.
*/
static const char ADMIT[] =
    "CREATE FUNCTION @admit(ids text[], known boolean[], namespaces text[], keys text[],"
    " due bigint[], made_at bigint, durable boolean) RETURNS TABLE (message bigint, new_id text,"
    " new_namespace text, new_key text, of_id text, new_seq bigint, new_partition smallint,"
    " late_until bigint, new_created_at bigint)" FUNCTION
    " DECLARE mode text; xid xid8; encoding text := current_setting('client_encoding');"
    " BEGIN"
    "  IF durable AND current_setting('synchronous_commit') = 'off' THEN"
    "   RAISE 'synchronous_commit is off' USING ERRCODE = 'OB002';"
    "  END IF;"
    "  IF encoding NOT IN ('UTF8', 'SQL_ASCII') THEN"
    "   RAISE 'client_encoding is %', encoding USING ERRCODE = 'OB003';"
    "  END IF;"
    "  made_at := coalesce(made_at, @now());"
    "  IF known IS NOT NULL THEN"
    "   PERFORM @refuse(array_agg(m.id), array_agg(m.namespace))"
    "    FROM unnest(ids, known, namespaces) AS m (id, known, namespace) WHERE m.known;"
    "  END IF;"
    "  SELECT ordering, pg_current_xact_id() INTO mode, xid FROM @schema;"
    "  IF mode = 'strict' THEN PERFORM pg_advisory_xact_lock(#, 1024);"
    "  ELSIF mode = 'key' THEN"
    "   PERFORM pg_advisory_xact_lock(#, c.class) FROM (SELECT DISTINCT"
    "    (@hash(coalesce(s.copy, m.namespace), m.key) & 1023)::int AS class"
    "    FROM unnest(namespaces, keys, due) AS m (namespace, key, due_at)"
    "    LEFT JOIN @subscriptions AS s ON s.namespace = m.namespace"
    "    WHERE m.key IS NOT NULL AND (m.due_at > made_at) IS NOT TRUE ORDER BY class) AS c;"
    "  END IF;"
    "  RETURN QUERY SELECT p.o, p.id, p.namespace, p.key, p.source_id, p.seq,"
    "    (coalesce(@hash(p.namespace, p.key), p.seq) & 63)::smallint, p.late, made_at"
    "   FROM (SELECT nextval('@seq') AS seq, c.* FROM (SELECT m.o, m.key,"
    "     CASE WHEN s.copy IS NULL THEN m.id ELSE m.id || ':' || s.copy END AS id,"
    "     coalesce(s.copy, m.namespace) AS namespace,"
    "     CASE WHEN s.copy IS NOT NULL THEN m.id END AS source_id,"
    "     CASE WHEN m.due_at > made_at THEN m.due_at END AS late"
    "     FROM unnest(ids, namespaces, keys, due) WITH ORDINALITY"
    "     AS m (id, namespace, key, due_at, o)"
    "     LEFT JOIN @subscriptions AS s ON s.namespace = m.namespace"
    "     ORDER BY m.o, s.copy) AS c OFFSET 0) AS p;"
    " END $$;";

/*
** Makes scheduled entries ready that are due, at the end. Where a publisher holds the lock of a
** key, they wait for another time. Returns how many were due.
*/
static const char PROMOTE[] =
    "CREATE FUNCTION @promote(due bigint, most bigint) RETURNS bigint LANGUAGE plpgsql AS $$"
    " DECLARE d record; h bigint; s bigint; mode text; count bigint := 0;"
    " BEGIN"
    "  PERFORM pg_current_xact_id();"
    "  SELECT ordering INTO mode FROM @schema;"
    "  FOR d IN SELECT * FROM @delayed WHERE position IS NULL AND due_at <= due"
    "   ORDER BY due_at, seq LIMIT most FOR UPDATE SKIP LOCKED"
    "  LOOP"
    "   count := count + 1;"
    "   h := CASE WHEN d.key IS NOT NULL THEN @hash(d.namespace, d.key) END;"
    "   CONTINUE WHEN mode = 'strict' AND NOT pg_try_advisory_xact_lock(#, 1024);"
    "   CONTINUE WHEN mode = 'key' AND h IS NOT NULL"
    "    AND NOT pg_try_advisory_xact_lock(#, (h & 1023)::int);"
    "   s := nextval('@seq');"
    "   DELETE FROM @delayed WHERE seq = d.seq;"
    "   INSERT INTO @entries (partition, seq, id, namespace, key, payload, payload_bytes, headers,"
    "    created_at, attempts, last_error, source_id) VALUES (coalesce(h, s) & 63, s,"
    "    CASE WHEN EXISTS (SELECT FROM @entries AS e WHERE e.id = d.id)"
    "     THEN d.id || '~' || d.seq ELSE d.id END, d.namespace, d.key, d.payload,"
    "    d.payload_bytes, d.headers, d.created_at, d.attempts, d.last_error, d.source_id);"
    "  END LOOP;"
    "  RETURN count;"
    " END $$;";

/* Puts dead letters back, at the end, in the order of the array. Returns how many there were. */
static const char REQUEUE[] =
    "CREATE FUNCTION @requeue(ids text[]) RETURNS bigint LANGUAGE plpgsql AS $$"
    " DECLARE d record; h bigint; s bigint; mode text; count bigint := 0;"
    " BEGIN"
    "  PERFORM pg_current_xact_id();"
    "  SELECT ordering INTO mode FROM @schema;"
    "  IF mode = 'strict' THEN PERFORM pg_advisory_xact_lock(#, 1024);"
    "  ELSIF mode = 'key' THEN"
    "   PERFORM pg_advisory_xact_lock(#, k) FROM (SELECT DISTINCT"
    "    (@hash(namespace, key) & 1023)::int AS k FROM @dead WHERE id = ANY (ids)"
    "    AND key IS NOT NULL ORDER BY 1) AS t;"
    "  END IF;"
    "  FOR d IN SELECT e.*, i.o FROM unnest(ids) WITH ORDINALITY AS i (id, o)"
    "   JOIN @dead AS e ON e.id = i.id ORDER BY i.o LOOP"
    "   DELETE FROM @dead WHERE seq = d.seq;"
    "   CONTINUE WHEN NOT FOUND;"
    "   h := CASE WHEN d.key IS NOT NULL THEN @hash(d.namespace, d.key) END;"
    "   s := nextval('@seq');"
    "   INSERT INTO @entries (partition, seq, id, namespace, key, payload, payload_bytes, headers,"
    "    created_at, last_error, source_id) VALUES (coalesce(h, s) & 63, s, d.id, d.namespace,"
    "    d.key, d.payload, d.payload_bytes, d.headers, d.created_at, d.last_error, d.source_id);"
    "   count := count + 1;"
    "  END LOOP;"
    "  RETURN count;"
    " END $$;";

static const char *const VERSION_1[] = {TABLES, PLACE,   SCHEDULE, RING, REFUSE,
                                        ADMIT,  PROMOTE, REQUEUE,  NULL};

const char *const *const schema_steps[SCHEMA_VERSION] = {VERSION_1};
