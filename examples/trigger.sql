-- Every change of a table becomes a message, whichever program makes the change. Plain SQL; no
-- extension is needed, but the tables of the outbox must be there.
--
--   sqlite3 DATABASE < examples/trigger.sql

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
