"""An order and its message in one transaction, in Python.

    python3 examples/extension.py DATABASE EXTENSION

EXTENSION is the path that this command prints:

    lua5.4 -e 'print(package.searchpath("outbox_sqlite", package.cpath))'
"""

import sqlite3
import sys

# With the default isolation level Python begins a transaction before an INSERT, but not before a
# SELECT such as that of outbox_publish.
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.enable_load_extension(True)
connection.load_extension(sys.argv[2])
connection.execute("SELECT outbox_migrate()")
connection.execute("CREATE TABLE orders (number INTEGER PRIMARY KEY, total REAL)")


def place(number, total):
    connection.execute("INSERT INTO orders VALUES (?, ?)", (number, total))
    payload = f"order {number} was placed"
    query = "SELECT outbox_publish('orders', ?, ?)"
    return connection.execute(query, (number, payload)).fetchone()[0]


connection.execute("BEGIN IMMEDIATE")
place(1, 99.5)
connection.execute("COMMIT")  # the order and its message are there now

connection.execute("BEGIN IMMEDIATE")
place(2, 12)
connection.execute("ROLLBACK")  # neither of these is

connection.close()
