<?php
// An order and its message in one transaction, in PHP.
//
//   php -d sqlite3.extension_dir=DIRECTORY examples/extension.php DATABASE
//
// DIRECTORY is the folder that has outbox_sqlite.so. This command prints it:
//
//   dirname "$(lua5.4 -e 'print(package.searchpath("outbox_sqlite", package.cpath))')"

$database = new SQLite3($argv[1]);
$database->enableExceptions(true);
$database->busyTimeout(5000);
$database->loadExtension('outbox_sqlite.so');
$database->querySingle('SELECT outbox_migrate()');
$database->exec('CREATE TABLE orders (number INTEGER PRIMARY KEY, total REAL)');

function place(SQLite3 $database, int $number, float $total): void
{
    $database->exec("INSERT INTO orders VALUES ($number, $total)");
    $publish = $database->prepare("SELECT outbox_publish('orders', ?, ?)");
    $publish->bindValue(1, $number);
    $publish->bindValue(2, "order $number was placed");
    $publish->execute(); // without fetchArray(), which would run it again
}

$database->exec('BEGIN IMMEDIATE');
place($database, 1, 99.5);
$database->exec('COMMIT'); // the order and its message are there now

$database->exec('BEGIN IMMEDIATE');
place($database, 2, 12);
$database->exec('ROLLBACK'); // neither of these is

$database->close();
