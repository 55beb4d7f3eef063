-- An order and its message in one transaction on PostgreSQL, in plain SQL, from any program. The
-- tables of the outbox must be there.
--
--   psql 'postgresql://localhost/shop' -f examples/postgres.sql
--
-- Python (psycopg), whose `with connection` is a transaction, and PHP (PDO):
--
--   with connection:
--       connection.execute("INSERT INTO orders VALUES (%s, %s)", (1, 99.5))
--       connection.execute("INSERT INTO outbox_entries (namespace, key, payload)"
--                          " VALUES ('orders', %s, %s)", ("1", "order 1 was placed"))
--
--   $pdo->beginTransaction();
--   $pdo->prepare('INSERT INTO orders VALUES (?, ?)')->execute([1, 99.5]);
--   $pdo->prepare("INSERT INTO outbox_entries (namespace, key, payload) VALUES ('orders', ?, ?)")
--       ->execute(['1', 'order 1 was placed']);
--   $pdo->commit();

CREATE TABLE orders (number integer PRIMARY KEY, total numeric);

BEGIN;
INSERT INTO orders VALUES (1, 99.5);
INSERT INTO outbox_entries (namespace, key, payload) VALUES ('orders', '1', 'order 1 was placed');
COMMIT; -- the order and its message are there now

BEGIN;
INSERT INTO orders VALUES (2, 12);
INSERT INTO outbox_entries (namespace, key, payload) VALUES ('orders', '2', 'order 2 was placed');
ROLLBACK; -- neither of these is

-- A payload that is no UTF-8 goes into another column:
--
--   INSERT INTO outbox_entries (namespace, payload_bytes) VALUES ('images', '\x89504e47');
--
-- Or each INSERT, UPDATE and DELETE on a table becomes a message, whichever program makes the
-- change. TRUNCATE makes none.

CREATE FUNCTION publish_total() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
  changed orders := CASE WHEN TG_OP = 'DELETE' THEN OLD ELSE NEW END;
BEGIN
  INSERT INTO outbox_entries (namespace, key, payload)
  VALUES ('totals', changed.number, json_build_object('event', TG_OP, 'number', changed.number,
    'total', changed.total));
  RETURN NULL;
END $$;

CREATE TRIGGER publish_total AFTER INSERT OR UPDATE OR DELETE ON orders
FOR EACH ROW EXECUTE FUNCTION publish_total();

INSERT INTO orders VALUES (3, 5);
UPDATE orders SET total = 6 WHERE number = 3;
DELETE FROM orders WHERE number = 3;
