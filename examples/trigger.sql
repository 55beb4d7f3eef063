-- Each INSERT, UPDATE and DELETE on a table becomes a message, whichever program makes the change.
-- Plain SQL; no extension is needed, but the tables of the outbox must be there.
--
--   sqlite3 DATABASE < examples/trigger.sql
--
-- Two changes make no message:
--
-- * REPLACE, INSERT OR REPLACE and UPDATE OR REPLACE delete the rows that are in the way. No delete
--   trigger is fired for them, unless the connection that writes has set
--   PRAGMA recursive_triggers = ON. The insert or update itself makes its message. Better use
--   INSERT ... ON CONFLICT DO UPDATE, which fires the update trigger.
-- * DROP TABLE removes the triggers of the table. Tools that migrate a schema often rebuild a table:
--   they create a new one, copy the rows, drop the old one and rename the new one. Create the
--   triggers again after each migration, and check that they are there:
--   SELECT name FROM sqlite_schema WHERE type = 'trigger' AND tbl_name = 'orders';

CREATE TABLE orders (number INTEGER PRIMARY KEY, total REAL);

CREATE TRIGGER orders_inserted AFTER INSERT ON orders BEGIN
  INSERT INTO outbox_entries (namespace, key, payload)
  VALUES ('orders', NEW.number,
    json_object('event', 'inserted', 'number', NEW.number, 'total', NEW.total));
END;

CREATE TRIGGER orders_updated AFTER UPDATE ON orders BEGIN
  INSERT INTO outbox_entries (namespace, key, payload)
  VALUES ('orders', NEW.number,
    json_object('event', 'updated', 'number', NEW.number, 'total', NEW.total, 'was', OLD.total));
END;

CREATE TRIGGER orders_deleted AFTER DELETE ON orders BEGIN
  INSERT INTO outbox_entries (namespace, key, payload)
  VALUES ('orders', OLD.number, json_object('event', 'deleted', 'number', OLD.number));
END;

INSERT INTO orders VALUES (1, 99.5), (2, 12);
UPDATE orders SET total = 100 WHERE number = 1;
DELETE FROM orders WHERE number = 2;
BEGIN;
DELETE FROM orders;
ROLLBACK;
