/*
** The sources of ids: UUIDv7 by default, UUIDv4, the caller's own generator, or SQL.
*/
#include <stdlib.h>

#include "support.h"

/* --- UUIDs ----------------------------------------------------------------------------------- */

static bool is_uuid(outbox_bytes id, char version) {
  if (id.data == NULL || id.size != OUTBOX_ID_SIZE - 1) return false;
  const char *c = id.data;
  for (size_t i = 0; i < id.size; i++) {
    bool dash = i == 8 || i == 13 || i == 18 || i == 23;
    if (dash ? c[i] != '-' : strchr("0123456789abcdef", c[i]) == NULL) return false;
  }
  return c[14] == version && strchr("89ab", c[19]) != NULL;
}

/* Publishes `count` messages in one call. Asserts that their ids ascend and are greater than
** `last`, and sets `last` to the final one. */
static void assert_rising(outbox_store *store, size_t count, char last[OUTBOX_ID_SIZE]) {
  outbox_message messages[100] = {{.id = {0}}};
  assert_ok(store, outbox_publish(store, messages, count));
  for (size_t i = 0; i < count; i++) {
    assert_true(is_uuid(messages[i].id, '7'));
    assert_true(memcmp(messages[i].id.data, last, OUTBOX_ID_SIZE - 1) > 0);
    memcpy(last, messages[i].id.data, OUTBOX_ID_SIZE - 1);
  }
}

static void default_ids_are_v7_and_rise_though_the_clock_stands(void **state) {
  fixture *f = *state;
  char last[OUTBOX_ID_SIZE] = "";
  f->now = 0;
  assert_rising(f->store, 2, last);
  f->now = NOW;
  assert_rising(f->store, 100, last);
  assert_rising(f->store, 1, last);
  assert_rising(f->store, 1, last);
  f->now++;
  assert_rising(f->store, 17, last);
  f->now = NOW + 3600 * SECOND;
  assert_rising(f->store, 2, last);
  assert_int_equal(number(f->db, "SELECT count(DISTINCT id) FROM outbox_entries"), 123);
}

/* No row stores an id that was made for its place, so nothing is written into the index. */
static void a_default_id_is_derived_of_its_row(void **state) {
  fixture *f = *state;
  outbox_message messages[20] = {{.id = {0}}}, one = {.payload = text("x")};
  char ids[20 * OUTBOX_ID_SIZE] = "";
  assert_ok(f->store, outbox_publish(f->store, &one, 1));
  assert_ok(f->store, outbox_publish(f->store, messages, 20));
  assert_int_equal(number(f->db, "SELECT count(*) FROM outbox_ready WHERE id IS NULL"), 21);
  for (int i = 0; i < 20; i++) {
    if (i > 0) strcat(ids, " ");
    strncat(ids, messages[i].id.data, messages[i].id.size);
  }
  execute(f->db, "DELETE FROM outbox_entries WHERE seq = 1");
  assert_string_equal(ids_in(f->db, "entries"), ids);
  assert_true(claim(f->store, "p", f->now + SECOND));
  assert_string_equal(claimed_ids(f->store, "p"), ids);
}

/* The id is promised before the row has its place. Where that is another one, the row stores it. */
static void an_id_stays_the_same_though_another_store_was_faster(void **state) {
  fixture *f = *state;
  outbox_options options = test_options(f);
  outbox_store *second = open_store(f, &options);
  outbox_message a = {.payload = text("a")}, many[20] = {{.id = {0}}};
  publish(f->store, "first");
  assert_ok(second, outbox_generate_ids(second, &a, 1));
  assert_ok(second, outbox_generate_ids(second, many, 20));
  publish(f->store, "second");
  assert_ok(second, outbox_publish(second, &a, 1));
  assert_ok(second, outbox_publish(second, many, 20));
  outbox_identity last = {many[19].id, OUTBOX_ANY_SEQ};
  int64_t deleted;
  assert_ok(f->store, outbox_delete_entries(f->store, &last, 1, &deleted));
  assert_int_equal(deleted, 1);
  assert_int_equal(number(f->db, "SELECT count(*) FROM outbox_ready WHERE id IS NOT NULL"), 22);
}

/* An id whose time, place and random part could be any row's. */
static void no_id_is_taken_for_that_of_another_row(void **state) {
  fixture *f = *state;
  outbox_message one = {.payload = text("x")}, other = {.payload = text("y")};
  int64_t deleted;
  assert_ok(f->store, outbox_publish(f->store, &one, 1));
  char id[OUTBOX_ID_SIZE];
  for (size_t i = 0; i < one.id.size; i++) {
    memcpy(id, one.id.data, OUTBOX_ID_SIZE);
    id[i] = id[i] == '0' ? '1' : id[i] == '-' ? '+' : '0';
    if (i >= 10 && id[i] == '0' && ((const char *)one.id.data)[i] == 'a') id[i] = 'A';
    outbox_identity identity = {text(id), OUTBOX_ANY_SEQ}, placed = {text(id), 1};
    assert_ok(f->store, outbox_delete_entries(f->store, &identity, 1, &deleted));
    assert_int_equal(deleted, 0);
    assert_ok(f->store, outbox_delete_entries(f->store, &placed, 1, &deleted));
    assert_int_equal(deleted, 0);
  }
  other.id = one.id;
  assert_code(f->store, outbox_publish(f->store, &other, 1), OUTBOX_DUPLICATE);
  outbox_identity identity = {one.id, OUTBOX_ANY_SEQ};
  assert_ok(f->store, outbox_delete_entries(f->store, &identity, 1, &deleted));
  assert_int_equal(deleted, 1);
}

static void a_v7_id_starts_with_the_time_and_its_fraction(void **state) {
  fixture *f = *state;
  outbox_message one = {.payload = text("x")};
  /* 1,700,000,000,123 ms are 18bcfe5687b; 456 us after that are 1c8. */
  assert_ok(f->store, outbox_publish(f->store, &one, 1));
  assert_memory_equal(one.id.data, "018bcfe5-687b-71c8-", 19);
  assert_memory_equal(ids_in(f->db, "entries"), one.id.data, one.id.size);
}

static void two_stores_at_the_same_time_make_different_ids(void **state) {
  fixture *f = *state;
  outbox_options options = test_options(f);
  outbox_store *second = open_store(f, &options);
  outbox_message a = {.payload = text("a")}, b = {.payload = text("b")};
  assert_ok(f->store, outbox_publish(f->store, &a, 1));
  assert_ok(second, outbox_publish(second, &b, 1));
  assert_memory_not_equal(a.id.data, b.id.data, a.id.size);
}

static void v4_ids_are_random(void **state) {
  fixture *f = *state;
  outbox_options options = test_options(f);
  options.id_generator = outbox_uuid_v4;
  outbox_store *store = open_store(f, &options);
  outbox_message messages[50] = {{.id = {0}}};
  assert_ok(store, outbox_publish(store, messages, 50));
  for (int i = 0; i < 50; i++)
    assert_true(is_uuid(messages[i].id, '4'));
  assert_int_equal(number(f->db, "SELECT count(DISTINCT substr(id, 1, 8)) > 1 AND"
                                 " count(DISTINCT substr(id, 25)) > 1 FROM outbox_entries"),
                   1);
}

/* --- The caller's clock and generator -------------------------------------------------------- */

typedef struct generator {
  sqlite3 *other;     /* the generator writes to this connection */
  int written;        /* SQLite's code for that write */
  int calls, fail_at; /* the call that fails, counted from 1 */
  bool empty_handed;  /* sets no id but returns success */
  int64_t now;        /* the time that it was given */
} generator;

static int generate(void *context, int64_t now, outbox_message *message) {
  generator *g = context;
  g->now = now;
  if (g->other != NULL)
    g->written |= sqlite3_exec(g->other, "INSERT INTO application VALUES (1)", NULL, NULL, NULL);
  if (++g->calls == g->fail_at) return -1;
  if (g->empty_handed) return 0;
  snprintf(message->generated_id, sizeof message->generated_id, "made%d", g->calls);
  message->id = text(message->generated_id);
  return 0;
}

static outbox_store *open_with_generator(fixture *f, generator *g) {
  outbox_options options = test_options(f);
  options.id_generator = generate;
  options.id_generator_context = g;
  return open_store(f, &options);
}

static void the_generator_is_asked_once_for_each_message_without_an_id(void **state) {
  fixture *f = *state;
  generator g = {0};
  outbox_store *store = open_with_generator(f, &g);
  outbox_message messages[] = {{.key = text("k")}, message("own"), {.key = text("k")}};
  f->clock_calls = 0;
  assert_ok(store, outbox_publish(store, messages, 3));
  assert_int_equal(g.calls, 2);
  assert_int_equal(g.now, NOW);
  assert_int_equal(f->clock_calls, 1);
  assert_true(same_bytes(messages[0].id, text("made1")));
  assert_true(same_bytes(messages[1].id, text("own")));
  assert_true(same_bytes(messages[2].id, text("made2")));
  assert_string_equal(ids_in(f->db, "entries"), "made1 own made2");
}

static void the_generator_is_asked_before_the_database_is_locked(void **state) {
  fixture *f = *state;
  generator g = {.other = connect_plainly(f)};
  outbox_store *store = open_with_generator(f, &g);
  outbox_message messages[20] = {{.id = {0}}};
  execute(g.other, "CREATE TABLE application (x)");
  assert_ok(store, outbox_publish(store, messages, 20));
  assert_int_equal(g.written, SQLITE_OK);
  assert_int_equal(number(f->db, "SELECT count(*) FROM application"), 20);
}

static void a_generated_id_that_is_taken_is_a_duplicate(void **state) {
  fixture *f = *state;
  generator g = {0};
  outbox_store *store = open_with_generator(f, &g);
  outbox_message one = {.payload = text("x")};
  publish(f->store, "made1");
  assert_true(bury(f->store, "made1"));
  assert_code(store, outbox_publish(store, &one, 1), OUTBOX_DUPLICATE);
}

static void a_generator_that_fails_fails_the_publish_and_nothing_is_written(void **state) {
  fixture *f = *state;
  generator g = {.fail_at = 3};
  outbox_store *store = open_with_generator(f, &g);
  outbox_message messages[4] = {{.id = {0}}};
  assert_ok(store, outbox_begin(store));
  assert_code(store, outbox_publish(store, messages, 4), OUTBOX_CALLBACK);
  publish(store, "a");
  assert_ok(store, outbox_commit(store));
  assert_string_equal(ids_in(f->db, "entries"), "a");
}

static void a_generator_that_sets_no_id_has_failed(void **state) {
  fixture *f = *state;
  generator g = {.empty_handed = true};
  outbox_store *store = open_with_generator(f, &g);
  outbox_message one = {.payload = text("x")};
  assert_code(store, outbox_publish(store, &one, 1), OUTBOX_CALLBACK);
  assert_string_equal(ids_in(f->db, "entries"), "");
}

static void a_clock_that_fails_fails_whatever_asks_it_and_nothing_is_written(void **state) {
  fixture *f = *state;
  outbox_message one = message("b");
  outbox_counts counts;
  bool flag;
  publish(f->store, "a");
  assert_true(claim(f->store, "p", NOW));
  f->clock_fails = true;
  assert_code(f->store, outbox_publish(f->store, &one, 1), OUTBOX_CALLBACK);
  assert_code(
      f->store,
      outbox_claim_entries(f->store, text("p"), NOW + 1, 0, &(outbox_claimed){.any = false}),
      OUTBOX_CALLBACK);
  assert_code(f->store, outbox_get_claimed_entries(f->store, text("p"), 1, 0), OUTBOX_CALLBACK);
  assert_code(f->store, outbox_bury_entry(f->store, any(text("a")), text("e"), &flag),
              OUTBOX_CALLBACK);
  assert_code(f->store, outbox_count_entries(f->store, &counts), OUTBOX_CALLBACK);
  f->clock_fails = false;
  assert_string_equal(ids_in(f->db, "entries"), "a");
  assert_int_equal(number(f->db, "SELECT deadline FROM outbox_claims"), NOW);
}

/* --- Ids by SQL ------------------------------------------------------------------------------ */

/* SQL reads the system's clock, therefore the test can only check that the time is about right. */
static void plain_sql_gets_v7_ids_with_the_time_and_created_at_in_microseconds(void **state) {
  fixture *f = *state;
  int64_t now;
  execute(connect_plainly(f), "INSERT INTO outbox_entries (namespace, key, payload)"
                              " VALUES ('n', 'k', 'p'), ('n', 'k', 'q')");
  assert_int_equal(outbox_system_clock(NULL, &now), 0);
  claim(f->store, "p", NOW);
  assert_ok(f->store, outbox_get_claimed_entries(f->store, text("p"), 10, 0));
  char previous[OUTBOX_ID_SIZE] = "";
  for (int i = 0; i < 2; i++) {
    outbox_entry entry;
    assert_code(f->store, outbox_next(f->store, &entry), OUTBOX_ROW);
    assert_true(is_uuid(entry.id, '7'));
    assert_memory_not_equal(entry.id.data, previous, OUTBOX_ID_SIZE - 1);
    memcpy(previous, entry.id.data, OUTBOX_ID_SIZE - 1);
    assert_in_range(entry.created_at, now - 10 * SECOND, now + SECOND);
    char digits[13];
    memcpy(digits, previous, 8);
    memcpy(digits + 8, previous + 9, 4);
    digits[12] = '\0';
    assert_in_range(strtoll(digits, NULL, 16) * 1000, now - 10 * SECOND, now + SECOND);
    assert_true(same_bytes(entry.namespace, text("n")));
    assert_true(same_bytes(entry.key, text("k")));
    assert_true(same_bytes(entry.payload, text(i == 0 ? "p" : "q")));
    assert_null(entry.headers.data);
    assert_null(entry.last_error.data);
    assert_int_equal(entry.attempts, 0);
  }
}

int test_ids(void) {
  const struct CMUnitTest tests[] = {
      TEST(default_ids_are_v7_and_rise_though_the_clock_stands),
      TEST(a_default_id_is_derived_of_its_row),
      TEST(an_id_stays_the_same_though_another_store_was_faster),
      TEST(no_id_is_taken_for_that_of_another_row),
      TEST(a_v7_id_starts_with_the_time_and_its_fraction),
      TEST(two_stores_at_the_same_time_make_different_ids),
      TEST(v4_ids_are_random),
      TEST(the_generator_is_asked_once_for_each_message_without_an_id),
      TEST(the_generator_is_asked_before_the_database_is_locked),
      TEST(a_generated_id_that_is_taken_is_a_duplicate),
      TEST(a_generator_that_fails_fails_the_publish_and_nothing_is_written),
      TEST(a_generator_that_sets_no_id_has_failed),
      TEST(a_clock_that_fails_fails_whatever_asks_it_and_nothing_is_written),
      TEST(plain_sql_gets_v7_ids_with_the_time_and_created_at_in_microseconds),
  };
  return cmocka_run_group_tests_name("ids", tests, NULL, NULL);
}
