/*
** Values: each field of a message is read back byte for byte.
*/
#include "support.h"

/* Claims all entries and reads the only one. */
static outbox_entry read_one(fixture *f) {
  outbox_entry entry;
  assert_true(claim(f->store, "p", NOW));
  assert_ok(f->store, outbox_get_claimed_entries(f->store, text("p"), 2, 0));
  assert_code(f->store, outbox_next(f->store, &entry), OUTBOX_ROW);
  return entry;
}

static void all_bytes(unsigned char bytes[256]) {
  for (int i = 0; i < 256; i++)
    bytes[i] = (unsigned char)i;
}

static void every_byte_survives_in_every_field(void **state) {
  fixture *f = *state;
  unsigned char bytes[256];
  all_bytes(bytes);
  const outbox_bytes all = {bytes, sizeof bytes};
  const outbox_bytes headers = text("{\"key\": \"\xff\x80 \xc3\xa4\"}"); /* not UTF-8 */
  outbox_message one = {
      .id = all, .namespace = all, .key = all, .payload = all, .headers = headers};
  assert_ok(f->store, outbox_publish(f->store, &one, 1));
  outbox_entry entry = read_one(f);
  assert_true(same_bytes(entry.id, all));
  assert_true(same_bytes(entry.namespace, all));
  assert_true(same_bytes(entry.key, all));
  assert_true(same_bytes(entry.payload, all));
  assert_true(same_bytes(entry.headers, headers));
  assert_null(entry.last_error.data);
  assert_int_equal(entry.created_at, NOW);
  assert_int_equal(entry.attempts, 0);
  assert_int_equal(entry.died_at, 0);
}

static void every_byte_survives_a_retry_and_the_dead_letters(void **state) {
  fixture *f = *state;
  unsigned char bytes[256];
  all_bytes(bytes);
  const outbox_bytes all = {bytes, sizeof bytes};
  outbox_message one = {.id = all, .namespace = all, .key = all, .payload = all};
  outbox_entry entry;
  int64_t count;
  bool found;
  assert_ok(f->store, outbox_publish(f->store, &one, 1));
  assert_ok(f->store, outbox_retry_entry(f->store, any(all), NOW, all, &found));
  assert_true(found);
  assert_true(same_bytes(read_one(f).last_error, all));
  assert_ok(f->store, outbox_bury_entry(f->store, any(all), all, &found));
  assert_true(found);
  assert_ok(f->store, outbox_dead_entries(f->store, all, 0, 1));
  assert_code(f->store, outbox_next(f->store, &entry), OUTBOX_ROW);
  assert_true(same_bytes(entry.last_error, all));
  assert_ok(f->store, outbox_requeue_entries(f->store, &all, 1, &count));
  assert_int_equal(count, 1);
  entry = read_one(f);
  assert_true(same_bytes(entry.id, all));
  assert_true(same_bytes(entry.namespace, all));
  assert_true(same_bytes(entry.key, all));
  assert_true(same_bytes(entry.payload, all));
  assert_ok(f->store, delete_any(f->store, &all, 1, &count));
  assert_int_equal(count, 1);
}

static void ids_that_differ_behind_a_nul_are_different(void **state) {
  fixture *f = *state;
  const outbox_bytes a = {"x\0a", 3}, b = {"x\0b", 3}, x = {"x", 1};
  outbox_message messages[] = {{.id = a}, {.id = b}, {.id = x}};
  int64_t deleted;
  assert_ok(f->store, outbox_publish(f->store, messages, 3));
  assert_ok(f->store, delete_any(f->store, &b, 1, &deleted));
  assert_int_equal(deleted, 1);
  assert_int_equal(number(f->db, "SELECT count(*) FROM outbox_entries"), 2);
  assert_ok(f->store, delete_any(f->store, &b, 1, &deleted));
  assert_int_equal(deleted, 0);
}

static void processors_that_differ_behind_a_nul_are_different(void **state) {
  fixture *f = *state;
  const outbox_bytes a = {"p\0a", 3}, b = {"p\0b", 3};
  outbox_claimed claimed;
  publish(f->store, "x");
  assert_ok(f->store, outbox_claim_entries(f->store, a, NOW, 0, &claimed));
  assert_true(claimed.any);
  assert_ok(f->store, outbox_claim_entries(f->store, b, NOW, 0, &claimed));
  assert_false(claimed.any);
  assert_ok(f->store, outbox_get_claimed_entries(f->store, b, 1, 0));
  assert_string_equal(read_ids(f->store), "");
  assert_ok(f->store, outbox_get_claimed_entries(f->store, a, 1, 0));
  assert_string_equal(read_ids(f->store), "x");
}

static void an_empty_value_is_not_null(void **state) {
  fixture *f = *state;
  outbox_message one = {.id = text("a"), .key = text(""), .payload = text("")};
  assert_ok(f->store, outbox_publish(f->store, &one, 1));
  outbox_entry entry = read_one(f);
  assert_true(same_bytes(entry.key, text("")));
  assert_true(same_bytes(entry.payload, text("")));
}

static void no_value_stays_none_except_that_a_namespace_is_empty(void **state) {
  fixture *f = *state;
  outbox_message one = {.id = text("a")};
  assert_ok(f->store, outbox_publish(f->store, &one, 1));
  outbox_entry entry = read_one(f);
  assert_true(same_bytes(entry.namespace, text("")));
  assert_null(entry.key.data);
  assert_null(entry.payload.data);
  assert_null(entry.headers.data);
}

static void a_payload_may_be_large(void **state) {
  fixture *f = *state;
  const size_t size = (size_t)16 << 20;
  unsigned char *large = test_malloc(size);
  for (size_t i = 0; i < size; i++)
    large[i] = (unsigned char)(i * 2654435761u >> 24);
  outbox_message one = {.id = text("a"), .payload = {large, size}};
  assert_ok(f->store, outbox_publish(f->store, &one, 1));
  outbox_entry entry = read_one(f);
  assert_true(same_bytes(entry.payload, one.payload));
  test_free(large);
}

/* SQLite stores the type that an INSERT by plain SQL used. A reader needs bytes. */
static void a_payload_of_any_sql_type_is_read_as_bytes(void **state) {
  static const char *const VALUES[][2] = {{"'text'", "text"}, {"42", "42"}, {"x'6279'", "by"}};
  fixture *f = *state;
  for (size_t i = 0; i < sizeof VALUES / sizeof *VALUES; i++) {
    char sql[100];
    snprintf(sql, sizeof sql, "INSERT INTO outbox_entries (payload) VALUES (%s)", VALUES[i][0]);
    execute(f->db, sql);
    assert_true(same_bytes(read_one(f).payload, text(VALUES[i][1])));
    execute(f->db, "DELETE FROM outbox_entries");
  }
}

static void the_database_has_its_own_copy_of_what_is_published(void **state) {
  fixture *f = *state;
  char buffer[] = "before";
  outbox_message one = {.id = text("a"), .payload = text(buffer)};
  assert_ok(f->store, outbox_begin(f->store));
  assert_ok(f->store, outbox_publish(f->store, &one, 1));
  memcpy(buffer, "after!", sizeof buffer);
  assert_ok(f->store, outbox_commit(f->store));
  assert_true(same_bytes(read_one(f).payload, text("before")));
}

int test_values(void) {
  const struct CMUnitTest tests[] = {
      TEST(every_byte_survives_in_every_field),
      TEST(every_byte_survives_a_retry_and_the_dead_letters),
      TEST(ids_that_differ_behind_a_nul_are_different),
      TEST(processors_that_differ_behind_a_nul_are_different),
      TEST(an_empty_value_is_not_null),
      TEST(no_value_stays_none_except_that_a_namespace_is_empty),
      TEST(a_payload_may_be_large),
      TEST(a_payload_of_any_sql_type_is_read_as_bytes),
      TEST(the_database_has_its_own_copy_of_what_is_published),
  };
  return cmocka_run_group_tests_name("values", tests, NULL, NULL);
}
