/*
** Publishing: a call publishes all its messages or none, in order, and each id is unique in the
** whole outbox.
*/
#include "support.h"

/* --- Order ----------------------------------------------------------------------------------- */

enum { MAX_MESSAGES = 33 };

/* Makes messages with the ids m00, m01, ... Every `delay_every`th one is scheduled for later (0:
** none). Sets `ready` and `delayed` to the lists of their ids. */
static void make_messages(outbox_message *messages, char names[][8], size_t count, int delay_every,
                          char *ready, char *delayed) {
  ready[0] = delayed[0] = '\0';
  for (size_t i = 0; i < count; i++) {
    bool later = delay_every > 0 && i % (size_t)delay_every == (size_t)delay_every - 1;
    snprintf(names[i], sizeof names[i], "m%02u", (unsigned)i);
    messages[i] = message(names[i]);
    if (later) messages[i].deliver_at = NOW + 1;
    char *list = later ? delayed : ready;
    if (list[0] != '\0') strcat(list, " ");
    strcat(list, names[i]);
  }
}

static void messages_keep_their_order_however_many_a_call_brings(void **state) {
  static const size_t COUNTS[] = {0, 1, 15, 16, 17, 32, MAX_MESSAGES};
  fixture *f = *state;
  for (size_t i = 0; i < sizeof COUNTS / sizeof *COUNTS; i++) {
    for (int delay_every = 0; delay_every <= 20; delay_every += 5) {
      outbox_message messages[MAX_MESSAGES];
      char names[MAX_MESSAGES][8], ready[MAX_MESSAGES * 8], delayed[MAX_MESSAGES * 8];
      make_messages(messages, names, COUNTS[i], delay_every, ready, delayed);
      assert_ok(f->store, outbox_publish(f->store, messages, COUNTS[i]));
      assert_string_equal(ids_in(f->db, "entries"), ready);
      assert_string_equal(ids_in(f->db, "delayed"), delayed);
      execute(f->db, "DELETE FROM outbox_entries; DELETE FROM outbox_delayed");
    }
  }
}

static void what_is_published_later_comes_later_whatever_the_clock_says(void **state) {
  fixture *f = *state;
  publish(f->store, "a");
  f->now -= 3600 * SECOND;
  publish(f->store, "b");
  f->now += 7200 * SECOND;
  publish(f->store, "c");
  assert_true(claim(f->store, "p", f->now));
  assert_string_equal(claimed_ids(f->store, "p"), "a b c");
}

static void a_message_is_delayed_only_if_its_time_is_yet_to_come(void **state) {
  fixture *f = *state;
  publish_at(f->store, "now", NOW);
  publish_at(f->store, "past", NOW - 1);
  publish_at(f->store, "future", NOW + 1);
  publish_at(f->store, "never", INT64_MAX);
  publish_at(f->store, "ever", INT64_MIN);
  assert_string_equal(ids_in(f->db, "entries"), "now past ever");
  assert_string_equal(ids_in(f->db, "delayed"), "future never");
}

/* --- Duplicates ------------------------------------------------------------------------------ */

/* Asserts that the messages are refused as duplicates, alone and within a transaction, and that the
** transaction survives. */
static void assert_duplicate(fixture *f, outbox_message *messages, size_t count) {
  assert_code(f->store, outbox_publish(f->store, messages, count), OUTBOX_DUPLICATE);
  assert_ok(f->store, outbox_begin(f->store));
  publish(f->store, "before");
  assert_code(f->store, outbox_publish(f->store, messages, count), OUTBOX_DUPLICATE);
  publish(f->store, "after");
  assert_ok(f->store, outbox_commit(f->store));
  assert_int_equal(delete_ids(f->store, "before after"), 2);
}

static void an_id_that_is_ready_delayed_or_dead_is_a_duplicate(void **state) {
  static const char *const TAKEN[] = {"ready", "scheduled", "retried", "dead"};
  fixture *f = *state;
  publish(f->store, "ready retried dead");
  publish_at(f->store, "scheduled", NOW + SECOND);
  assert_true(retry(f->store, "retried", NOW + SECOND));
  assert_true(bury(f->store, "dead"));
  for (size_t i = 0; i < sizeof TAKEN / sizeof *TAKEN; i++) {
    for (int64_t deliver_at = 0; deliver_at <= NOW + 1; deliver_at += NOW + 1) {
      outbox_message alone = message(TAKEN[i]);
      alone.deliver_at = deliver_at;
      outbox_message many[] = {message("x"), alone, message("y")};
      assert_duplicate(f, &alone, 1);
      assert_duplicate(f, many, 3);
    }
  }
  assert_string_equal(ids_in(f->db, "entries"), "ready");
  assert_string_equal(ids_in(f->db, "delayed"), "scheduled retried");
  assert_string_equal(ids_in(f->db, "dead"), "dead");
}

static void an_id_twice_in_one_call_is_a_duplicate(void **state) {
  fixture *f = *state;
  outbox_message both_ready[] = {message("x"), message("same"), message("same")};
  assert_duplicate(f, both_ready, 3);
  outbox_message both_delayed[] = {message("same"), message("x"), message("same")};
  both_delayed[0].deliver_at = both_delayed[2].deliver_at = NOW + 1;
  assert_duplicate(f, both_delayed, 3);
  assert_string_equal(ids_in(f->db, "entries"), "");
  assert_string_equal(ids_in(f->db, "delayed"), "");
}

static void an_id_both_ready_and_delayed_in_one_call_is_a_duplicate(void **state) {
  fixture *f = *state;
  outbox_message delayed_first[] = {message("same"), message("same")};
  delayed_first[0].deliver_at = NOW + 1;
  assert_duplicate(f, delayed_first, 2);
  outbox_message ready_first[] = {message("same"), message("same")};
  ready_first[1].deliver_at = NOW + 1;
  assert_duplicate(f, ready_first, 2);
  assert_string_equal(ids_in(f->db, "entries"), "");
  assert_string_equal(ids_in(f->db, "delayed"), "");
}

static void a_duplicate_at_the_end_of_many_leaves_none_of_them(void **state) {
  fixture *f = *state;
  outbox_message messages[MAX_MESSAGES];
  char names[MAX_MESSAGES][8], ready[MAX_MESSAGES * 8], delayed[MAX_MESSAGES * 8];
  make_messages(messages, names, MAX_MESSAGES, 0, ready, delayed);
  messages[MAX_MESSAGES - 1].id = messages[0].id;
  assert_duplicate(f, messages, MAX_MESSAGES);
  messages[MAX_MESSAGES - 1].id = text("last");
  messages[20].id = messages[0].id; /* among rows that one statement inserts */
  assert_duplicate(f, messages, MAX_MESSAGES);
  assert_string_equal(ids_in(f->db, "entries"), "");
}

/*
** Constraints of the application's own, and the message with which SQLite reports the second entry
** of a key. Most are in triggers, which may insert into any table.
*/
static const struct {
  const char *sql, *message;
} OWN_CONSTRAINTS[] = {
    {"CREATE TABLE audit (key UNIQUE);"
     "CREATE TRIGGER t AFTER INSERT ON outbox_ready"
     " BEGIN INSERT INTO audit VALUES (new.key); END",
     "UNIQUE constraint failed: audit.key"},
    {"CREATE TABLE \"outbox_ready.id\" (id UNIQUE);"
     "CREATE TRIGGER t BEFORE INSERT ON outbox_ready"
     " BEGIN INSERT INTO \"outbox_ready.id\" VALUES (new.key); END",
     "UNIQUE constraint failed: outbox_ready.id.id"},
    {"CREATE UNIQUE INDEX own ON outbox_ready (namespace, key)",
     "UNIQUE constraint failed: outbox_ready.namespace, outbox_ready.key"},
    {"CREATE UNIQUE INDEX own ON outbox_ready (upper(key))",
     "UNIQUE constraint failed: index 'own'"},
    {"CREATE TRIGGER t AFTER INSERT ON outbox_ready WHEN new.key = 'k'"
     " BEGIN INSERT INTO outbox_ready (id) VALUES ('copy'); END",
     "UNIQUE constraint failed: outbox_ready.id"},
    {"CREATE TRIGGER t AFTER INSERT ON outbox_ready"
     " BEGIN INSERT INTO outbox_dead (id, died_at) VALUES (coalesce(new.key, new.id, new.seq), 0); "
     "END",
     "UNIQUE constraint failed: outbox_dead.id"},
    {"CREATE TABLE audit (key PRIMARY KEY) WITHOUT ROWID;"
     "CREATE TRIGGER t AFTER INSERT ON outbox_ready"
     " BEGIN INSERT INTO audit VALUES (coalesce(new.key, new.id, new.seq)); END",
     "UNIQUE constraint failed: audit.key"},
    {"CREATE TEMP TABLE outbox_ready (id UNIQUE);"
     "CREATE TEMP TRIGGER t AFTER INSERT ON main.outbox_ready"
     " BEGIN INSERT INTO outbox_ready VALUES (new.key); END",
     "UNIQUE constraint failed: outbox_ready.id"},
    {"CREATE TRIGGER t AFTER INSERT ON outbox_ready WHEN new.key IN (SELECT key FROM"
     " outbox_ready WHERE seq <> new.seq)"
     " BEGIN SELECT RAISE(ABORT, 'UNIQUE constraint failed: outbox_ready.id'); END",
     "UNIQUE constraint failed: outbox_ready.id"},
};

static void a_constraint_of_the_applications_own_is_no_duplicate(void **state) {
  fixture *f = *state;
  for (size_t i = 0; i < sizeof OWN_CONSTRAINTS / sizeof *OWN_CONSTRAINTS; i++) {
    outbox_message first = {.key = text("k"), .id = text("first")}, second = {.key = text("k")};
    outbox_message third = {.key = text("k"), .id = text("third")}, twin = {.id = text("first")};
    outbox_message many[20] = {{.id = {0}}};
    execute(f->db, "SAVEPOINT case_");
    execute(f->db, OWN_CONSTRAINTS[i].sql);
    assert_ok(f->store, outbox_publish(f->store, &first, 1));
    assert_code(f->store, outbox_publish(f->store, &second, 1), OUTBOX_CONSTRAINT);
    assert_string_equal(outbox_error_message(f->store), OWN_CONSTRAINTS[i].message);
    assert_code(f->store, outbox_publish(f->store, &third, 1), OUTBOX_CONSTRAINT);
    assert_string_equal(outbox_error_message(f->store), OWN_CONSTRAINTS[i].message);
    many[7].key = text("k");
    assert_code(f->store, outbox_publish(f->store, many, 20), OUTBOX_CONSTRAINT);
    assert_string_equal(outbox_error_message(f->store), OWN_CONSTRAINTS[i].message);
    assert_duplicate(f, &twin, 1);
    assert_int_equal(number(f->db, "SELECT count(*) FROM main.outbox_entries WHERE id <> 'copy'"),
                     1);
    execute(f->db, "ROLLBACK TO case_; RELEASE case_");
  }
}

/* It takes the seq that the next message of the call would have had. */
static void a_trigger_of_the_applications_own_may_add_entries_in_between(void **state) {
  fixture *f = *state;
  outbox_message many[20] = {{.id = {0}}};
  execute(f->db,
          "CREATE TRIGGER t AFTER INSERT ON outbox_ready WHEN new.namespace = ''"
          " BEGIN INSERT INTO outbox_ready (id, namespace) VALUES (new.seq || '+', 'own'); END");
  assert_ok(f->store, outbox_publish(f->store, many, 20));
  assert_int_equal(number(f->db, "SELECT count(*) FROM outbox_entries"), 40);
  for (int i = 0; i < 20; i++) {
    outbox_identity identity = {many[i].id, OUTBOX_ANY_SEQ};
    int64_t deleted;
    assert_ok(f->store, outbox_delete_entries(f->store, &identity, 1, &deleted));
    assert_int_equal(deleted, 1);
  }
}

/* Publishes a message without an id to a namespace of one letter. */
static void publish_to(outbox_store *store, const char *namespace) {
  outbox_message it = {.namespace = {namespace, 1}};
  assert_ok(store, outbox_publish(store, &it, 1));
}

/* Inside a transaction what the last call has found out holds only while nothing else is done. */
static void whatever_is_done_between_two_messages_of_a_transaction_counts(void **state) {
  fixture *f = *state;
  sqlite3 *own = outbox_connection(f->store);
  bool added;
  int64_t changed;
  outbox_bytes plain = text("INSERT INTO outbox_entries (namespace) VALUES ('x')");
  assert_ok(f->store, outbox_begin(f->store));
  publish_to(f->store, "a");
  publish_to(f->store, "a");
  execute(own, plain.data); /* no number is given twice */
  execute(own, "DELETE FROM outbox_entries WHERE namespace = 'x'");
  publish_to(f->store, "a");
  publish_to(f->store, "a");
  assert_ok(f->store, outbox_execute(f->store, plain.data, NULL, 0, &changed));
  publish_to(f->store, "a");
  execute(own, plain.data);
  publish_to(f->store, "a");
  publish_to(f->store, "a");
  execute(own, "DELETE FROM outbox_entries WHERE namespace = 'a'"); /* the last one, too */
  publish_to(f->store, "b");
  publish_to(f->store, "b");
  assert_ok(f->store, outbox_subscribe(f->store, text("b"), text("c"), &added));
  publish_to(f->store, "b");
  publish_to(f->store, "x");
  execute(own, "INSERT INTO outbox_subscriptions VALUES ('x', 'c')");
  publish_to(f->store, "x");
  publish_to(f->store, "y");
  publish_to(f->store, "y");
  assert_ok(f->store, outbox_commit(f->store));
  assert_string_equal(
      string(f->db, "SELECT group_concat(seq || namespace, ' ') FROM outbox_entries"),
      "6x 8x 11b 12b 13c 14x 15c 16y 17y");
}

static void what_is_undone_inside_a_transaction_gives_its_seq_back(void **state) {
  fixture *f = *state;
  assert_ok(f->store, outbox_begin(f->store));
  publish_to(f->store, "a");
  assert_ok(f->store, outbox_begin(f->store));
  publish_to(f->store, "b");
  assert_ok(f->store, outbox_rollback(f->store));
  publish_to(f->store, "c");
  assert_ok(f->store, outbox_commit(f->store));
  assert_string_equal(
      string(f->db, "SELECT group_concat(seq || namespace, ' ') FROM outbox_entries"), "1a 2c");
}

static void an_id_that_is_free_again_may_be_used_again(void **state) {
  fixture *f = *state;
  publish(f->store, "a");
  assert_int_equal(delete_ids(f->store, "a"), 1);
  publish(f->store, "a");
  assert_string_equal(ids_in(f->db, "entries"), "a");
}

/* --- Refusals -------------------------------------------------------------------------------- */

static void headers_that_are_no_json_object_violate_a_constraint(void **state) {
  static const char *const BAD[] = {"[]", "1", "null", "\"text\"", "", "{", "{\"a\"", "no json"};
  fixture *f = *state;
  for (size_t i = 0; i < sizeof BAD / sizeof *BAD; i++) {
    outbox_message messages[MAX_MESSAGES];
    char names[MAX_MESSAGES][8], ready[MAX_MESSAGES * 8], delayed[MAX_MESSAGES * 8];
    make_messages(messages, names, MAX_MESSAGES, 0, ready, delayed);
    messages[3].headers = messages[MAX_MESSAGES - 1].headers = text(BAD[i]);
    assert_code(f->store, outbox_publish(f->store, &messages[3], 1), OUTBOX_CONSTRAINT);
    assert_code(f->store, outbox_publish(f->store, messages, MAX_MESSAGES), OUTBOX_CONSTRAINT);
    messages[3].headers = text("{}");
    assert_code(f->store, outbox_publish(f->store, messages, MAX_MESSAGES), OUTBOX_CONSTRAINT);
    messages[3].headers = text(BAD[i]);
    messages[3].deliver_at = NOW + 1;
    assert_code(f->store, outbox_publish(f->store, &messages[3], 1), OUTBOX_CONSTRAINT);
  }
  assert_string_equal(ids_in(f->db, "entries"), "");
  assert_string_equal(ids_in(f->db, "delayed"), "");
}

static void an_error_message_never_holds_a_payload(void **state) {
  fixture *f = *state;
  outbox_message one = message("a");
  one.payload = text("secret");
  one.headers = text("secret");
  assert_int_not_equal(outbox_publish(f->store, &one, 1), OUTBOX_OK);
  assert_null(strstr(outbox_error_message(f->store), "secret"));
}

static void a_value_beyond_the_limit_is_toobig(void **state) {
  fixture *f = *state;
  enum { LIMIT = 20000 };
  static const char LARGE[LIMIT + 1];
  const outbox_bytes half = {LARGE, LIMIT / 2 + 1}, whole = {LARGE, LIMIT + 1};
  sqlite3_limit(f->db, SQLITE_LIMIT_LENGTH, LIMIT);
  for (size_t count = 1; count <= 17; count += 8) { /* one, some, more than one statement inserts */
    for (int i = 0; i < 3; i++) {
      outbox_message messages[17] = {{.id = {0}}};
      outbox_message *last = &messages[count - 1];
      if (i == 0) last->payload = whole;
      if (i == 1) last->key = whole;
      if (i == 2) last->key = last->payload = half; /* only the whole row is too big */
      assert_code(f->store, outbox_publish(f->store, messages, count), OUTBOX_TOOBIG);
      assert_ok(f->store, outbox_begin(f->store));
      assert_code(f->store, outbox_publish(f->store, messages, count), OUTBOX_TOOBIG);
      publish(f->store, "a");
      assert_ok(f->store, outbox_commit(f->store));
      assert_string_equal(ids_in(f->db, "entries"), "a");
      assert_int_equal(delete_ids(f->store, "a"), 1);
    }
  }
}

/* Makes the database full: it cannot have more pages than now. */
static void fill_up(fixture *f) {
  char sql[64];
  int64_t pages = number(f->db, "PRAGMA page_count");
  snprintf(sql, sizeof sql, "PRAGMA max_page_count = %lld", (long long)pages);
  execute(f->db, sql);
}

static void a_full_database_refuses_and_is_usable_again_with_room(void **state) {
  fixture *f = *state;
  static const char LARGE[100000];
  outbox_message large[] = {message("b"), message("c")};
  large[0].payload = large[1].payload = (outbox_bytes){LARGE, sizeof LARGE};
  publish(f->store, "a");
  fill_up(f);
  assert_code(f->store, outbox_publish(f->store, large, 1), OUTBOX_FULL);
  assert_code(f->store, outbox_publish(f->store, large, 2), OUTBOX_FULL);
  assert_string_equal(ids_in(f->db, "entries"), "a");
  execute(f->db, "PRAGMA max_page_count = 1000000");
  assert_ok(f->store, outbox_publish(f->store, large, 2));
  assert_string_equal(ids_in(f->db, "entries"), "a b c");
}

/* SQLite rolls back the whole transaction. Later messages must not be committed without it. */
static void a_transaction_that_a_full_database_ended_takes_nothing_more(void **state) {
  fixture *f = *state;
  static const char LARGE[100000];
  for (size_t count = 1; count <= 2; count++) {
    outbox_message large[] = {message("b"), message("c")}, small = message("d");
    large[0].payload = large[1].payload = (outbox_bytes){LARGE, sizeof LARGE};
    fill_up(f);
    assert_ok(f->store, outbox_begin(f->store));
    publish(f->store, "a");
    assert_code(f->store, outbox_publish(f->store, large, count), OUTBOX_FULL);
    execute(f->db, "PRAGMA max_page_count = 1000000");
    assert_code(f->store, outbox_publish(f->store, &small, 1), OUTBOX_MISUSE);
    assert_code(f->store, outbox_commit(f->store), OUTBOX_MISUSE);
    assert_string_equal(ids_in(f->db, "entries"), "");
  }
  publish(f->store, "e");
  assert_string_equal(ids_in(f->db, "entries"), "e");
}

int test_publish(void) {
  const struct CMUnitTest tests[] = {
      TEST(messages_keep_their_order_however_many_a_call_brings),
      TEST(what_is_published_later_comes_later_whatever_the_clock_says),
      TEST(a_message_is_delayed_only_if_its_time_is_yet_to_come),
      TEST(an_id_that_is_ready_delayed_or_dead_is_a_duplicate),
      TEST(an_id_twice_in_one_call_is_a_duplicate),
      TEST(an_id_both_ready_and_delayed_in_one_call_is_a_duplicate),
      TEST(a_duplicate_at_the_end_of_many_leaves_none_of_them),
      TEST(a_constraint_of_the_applications_own_is_no_duplicate),
      TEST(a_trigger_of_the_applications_own_may_add_entries_in_between),
      TEST(whatever_is_done_between_two_messages_of_a_transaction_counts),
      TEST(what_is_undone_inside_a_transaction_gives_its_seq_back),
      TEST(an_id_that_is_free_again_may_be_used_again),
      TEST(headers_that_are_no_json_object_violate_a_constraint),
      TEST(an_error_message_never_holds_a_payload),
      TEST(a_value_beyond_the_limit_is_toobig),
      TEST(a_full_database_refuses_and_is_usable_again_with_room),
      TEST(a_transaction_that_a_full_database_ended_takes_nothing_more),
  };
  return cmocka_run_group_tests_name("publish", tests, NULL, NULL);
}
