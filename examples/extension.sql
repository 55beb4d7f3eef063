-- An order and its message in one transaction, in the sqlite3 shell.
--
--   make extension
--   sqlite3 DATABASE < examples/extension.sql

.bail on
.load build/outbox_sqlite
SELECT outbox_migrate();
CREATE TABLE orders (number INTEGER PRIMARY KEY, total REAL);

BEGIN IMMEDIATE;
INSERT INTO orders VALUES (1, 99.5);
SELECT outbox_publish('orders', 1, 'order 1 was placed');
COMMIT; -- the order and its message are there now

BEGIN IMMEDIATE;
INSERT INTO orders VALUES (2, 12);
SELECT outbox_publish('orders', 2, 'order 2 was placed');
ROLLBACK; -- neither of these is
