/*
** outbox_advance, the one operation of a processor: what is handed out, settled, shared, charged.
*/
#include "../../src/box.h"
#include "support.h"

static void serve(outbox_store *store, const char *id, const char *namespace, bool except,
                  enum outbox_ordering ordering) {
  outbox_bytes name = text(namespace != NULL ? namespace : "");
  outbox_service service = {.processor_id = text(id),
                            .except = except,
                            .ordering = ordering,
                            .namespaces = &name,
                            .namespace_count = namespace != NULL,
                            .duration = 2 * SECOND};
  assert_ok(store, outbox_serve(store, &service));
}

/* Gives the same outcome to all in hand, and takes the next batch. */
static outbox_progress advance(fixture *f, outbox_store *store, enum outbox_outcome outcome,
                               const outbox_want *want) {
  outbox_verdict verdict = {.outcome = outcome, .at = f->now + SECOND, .error = text("no")};
  return advance_all(store, verdict, want);
}

static int count_classes(fixture *f, const char *id) {
  char sql[120];
  snprintf(sql, sizeof sql, "SELECT classes FROM outbox_claims WHERE processor_id = '%s'", id);
  uint64_t mask = (uint64_t)number(f->db, sql);
  int count = 0;
  for (; mask != 0; mask &= mask - 1)
    count++;
  return count;
}

static void a_set_of_namespaces_is_written_in_one_way(void **state) {
  char text_of[64];
  outbox_bytes names[] = {text("b,c,d"), text("a"), text("b,c,d"), text("")};
  (void)state;
  size_t size = box_write(text_of, names, 4, false);
  assert_int_equal(size, strlen(text_of));
  assert_string_equal(text_of, "+0:1:a5:b,c,d");
  box_write(text_of, names, 2, true);
  assert_true(box_serves(text(text_of), text("x")) && !box_serves(text(text_of), text("a")));
  assert_int_equal(box_write(text_of, names, 0, true), 0);
  assert_true(box_overlaps(text(""), text("+1:a")));
  assert_true(box_overlaps(text("-1:a"), text("-1:b")));
  assert_true(box_overlaps(text("-1:b"), text("+1:a1:b")));
  assert_false(box_overlaps(text("+1:a"), text("+1:b")));
  assert_false(box_overlaps(text("-1:a"), text("+1:a")));
  assert_false(box_serves(text("+9:a"), text("a"))); /* damaged */
}

static void processors_of_one_set_share_its_classes(void **state) {
  fixture *f = *state;
  outbox_options options = test_options(f);
  outbox_store *stores[3];
  static const char *const IDS[] = {"a", "b", "c"};
  const outbox_want want = {.batch_size = 1, .join = true};
  publish(f->store, "1 2 3 4 5 6 7 8");
  for (int i = 0; i < 3; i++) {
    stores[i] = open_store(f, &options);
    serve(stores[i], IDS[i], NULL, true, OUTBOX_ORDERING_KEY);
    for (int j = 0; j <= i; j++)
      advance(f, stores[i - j], OUTBOX_AGAIN, &want);
    for (int j = 0; j <= i; j++) /* they give back what is too much, and then it is taken */
      advance(f, stores[j], OUTBOX_AGAIN, &want);
    for (int j = 0; j <= i; j++)
      assert_in_range(count_classes(f, IDS[j]), 64 / (i + 1) - 1, 64 / (i + 1) + 1);
  }
  const outbox_want leave = {.leave = true};
  advance(f, stores[0], OUTBOX_AGAIN, &leave);
  f->now += 3 * SECOND; /* b dies, c takes over */
  advance(f, stores[2], OUTBOX_AGAIN, &want);
  assert_int_equal(count_classes(f, "c"), 64);
}

static void in_strict_order_one_has_everything(void **state) {
  fixture *f = *state;
  outbox_options options = test_options(f);
  outbox_store *other = open_store(f, &options);
  const outbox_want want = {.batch_size = 2, .join = true};
  publish(f->store, "1 2 3 4");
  serve(f->store, "first", NULL, true, OUTBOX_ORDERING_STRICT);
  serve(other, "second", NULL, true, OUTBOX_ORDERING_STRICT);
  advance(f, f->store, OUTBOX_AGAIN, &want);
  assert_true(advance(f, other, OUTBOX_AGAIN, &want).refused);
  assert_int_equal(count_classes(f, "first"), 64);
  assert_string_equal(in_hand(f->store), "1 2");
  advance(f, f->store, OUTBOX_RETRY, &want); /* all wait for the first */
  assert_string_equal(in_hand(f->store), "");
  f->now += 2 * SECOND;
  advance(f, f->store, OUTBOX_AGAIN, &want);
  assert_string_equal(in_hand(f->store), "1");
}

static void of_sets_that_overlap_who_comes_later_stands_by(void **state) {
  fixture *f = *state;
  outbox_options options = test_options(f);
  outbox_store *all = open_store(f, &options), *apart = open_store(f, &options);
  const outbox_want want = {.batch_size = 10, .join = true}, leave = {.leave = true};
  publish(f->store, "1");
  execute(f->db, "INSERT INTO outbox_entries (id, namespace) VALUES ('a', 'n'), ('b', 'm')");
  serve(f->store, "n", "n", false, OUTBOX_ORDERING_KEY);
  serve(all, "all", NULL, true, OUTBOX_ORDERING_KEY);
  serve(apart, "apart", "n", true, OUTBOX_ORDERING_KEY);
  advance(f, f->store, OUTBOX_AGAIN, &want);
  assert_string_equal(in_hand(f->store), "a");
  outbox_progress progress = advance(f, all, OUTBOX_AGAIN, &want);
  assert_true(progress.refused && progress.overlapped);
  assert_false(advance(f, apart, OUTBOX_AGAIN, &want).refused);
  assert_string_equal(in_hand(apart), "1 b");
  advance(f, f->store, OUTBOX_AGAIN, &leave);
  advance(f, apart, OUTBOX_AGAIN, &leave);
  advance(f, all, OUTBOX_AGAIN, &want); /* it has its share, and reads with the next call */
  advance(f, all, OUTBOX_AGAIN, &want);
  assert_string_equal(in_hand(all), "1 a b");
}

static void a_takeover_charges_what_was_in_hand_and_nothing_else(void **state) {
  fixture *f = *state;
  outbox_options options = test_options(f);
  outbox_store *other = open_store(f, &options);
  const outbox_want want = {.batch_size = 2};
  publish(f->store, "1 2 3");
  serve(f->store, "dead", NULL, true, OUTBOX_ORDERING_KEY);
  serve(other, "heir", NULL, true, OUTBOX_ORDERING_KEY);
  advance(f, f->store, OUTBOX_AGAIN, &want);
  f->now += 3 * SECOND;
  advance(f, other, OUTBOX_AGAIN, &want);
  assert_int_equal(number(f->db, "SELECT sum(attempts) FROM outbox_entries"), 2);
  assert_int_equal(number(f->db, "SELECT attempts FROM outbox_entries WHERE id = '3'"), 0);
  advance(f, other, OUTBOX_AGAIN, &want);
  assert_string_equal(in_hand(other), "1"); /* one that may have killed it is alone */
  assert_true(advance(f, f->store, OUTBOX_RETRY, &want).lost);
  assert_int_equal(number(f->db, "SELECT count(*) FROM outbox_delayed"), 0);
}

static void a_suspect_is_named_and_handed_out_by_its_place_alone(void **state) {
  fixture *f = *state;
  const outbox_want want = {.batch_size = 2};
  publish(f->store, "1 2");
  serve(f->store, "p", NULL, true, OUTBOX_ORDERING_KEY);
  advance(f, f->store, OUTBOX_AGAIN, &want);
  advance(f, f->store, OUTBOX_PUT_OFF, &want);
  assert_int_equal(number(f->db, "SELECT sum(attempts) FROM outbox_delayed"), 0);
  f->now += 2 * SECOND;
  advance(f, f->store, OUTBOX_AGAIN, &want);
  assert_string_equal(in_hand(f->store), "");
  const outbox_suspect *suspect = outbox_suspects(f->store, 1);
  assert_non_null(suspect);
  assert_null(outbox_suspects(f->store, 2));
  assert_memory_equal(suspect->id.data, "2", 1);
  const outbox_want place = {.batch_size = 1, .where = OUTBOX_PLACE, .place = suspect->place};
  advance(f, f->store, OUTBOX_AGAIN, &place);
  assert_string_equal(in_hand(f->store), "2");
  outbox_verdict verdicts[2] = {
      /* in hand; and one that was put off before */
      {.outcome = OUTBOX_DELIVERED},
      {.outcome = OUTBOX_BURY, .entry = {text("1"), 1}, .error = text("poison")}};
  outbox_progress progress;
  assert_ok(f->store, outbox_advance(f->store, verdicts, 2, &want, &progress));
  assert_true(verdicts[0].found && verdicts[1].found);
  assert_int_equal(number(f->db, "SELECT attempts FROM outbox_dead WHERE id = '1'"), 1);
  assert_int_equal(number(f->db, "SELECT count(*) FROM outbox_delayed"), 0);
}

static void no_seq_comes_twice_when_what_was_just_found_is_settled(void **state) {
  fixture *f = *state;
  outbox_want want = {.batch_size = 1};
  outbox_progress progress;
  publish(f->store, "1 2");
  serve(f->store, "p", NULL, true, OUTBOX_ORDERING_KEY);
  assert_ok(f->store, outbox_advance(f->store, NULL, 0, &want, &progress));
  outbox_verdict verdicts[] = {{.outcome = OUTBOX_DELIVERED},
                               {.entry = {text("2"), 2}, .outcome = OUTBOX_DELIVERED}};
  assert_ok(f->store, outbox_advance(f->store, verdicts, 2, &want, &progress));
  publish(f->store, "3");
  assert_ok(f->store, outbox_find_entries(f->store, text("3")));
  outbox_entry entry;
  assert_int_equal(outbox_next(f->store, &entry), OUTBOX_ROW);
  assert_int_equal(entry.seq, 3);
  outbox_finish(f->store);
}

static void a_parked_namespace_is_left_behind_and_recovers_in_order(void **state) {
  fixture *f = *state;
  const outbox_want want = {.batch_size = 10};
  execute(f->db, "INSERT INTO outbox_entries (id, namespace, key) VALUES ('a1', 'a', 'k'),"
                 " ('b1', 'b', 'k'), ('a2', 'a', 'k'), ('a3', 'a', 'l'), ('b2', 'b', 'k')");
  serve(f->store, "p", NULL, true, OUTBOX_ORDERING_KEY);
  assert_ok(f->store, outbox_park(f->store, text("a")));
  advance(f, f->store, OUTBOX_AGAIN, &want);
  assert_string_equal(in_hand(f->store), "b1 b2");
  const outbox_want newest = {.batch_size = 10, .where = OUTBOX_NEWEST, .namespace = text("a")};
  advance(f, f->store, OUTBOX_DELIVERED, &newest);
  assert_string_equal(in_hand(f->store), "a3 a1"); /* the first of their keys */
  const outbox_want oldest = {.batch_size = 1, .where = OUTBOX_OLDEST, .namespace = text("a")};
  advance(f, f->store, OUTBOX_AGAIN, &oldest);
  assert_string_equal(in_hand(f->store), ""); /* they are in hand */
  advance(f, f->store, OUTBOX_AGAIN, &oldest);
  assert_string_equal(in_hand(f->store), "a1");
  outbox_progress progress = advance(f, f->store, OUTBOX_AGAIN, &want);
  assert_int_equal(progress.count, 0);
  outbox_recover(f->store, text("a"));
  advance(f, f->store, OUTBOX_AGAIN, &want);
  assert_string_equal(in_hand(f->store), "a1 a2 a3");
}

static void a_scheduled_entry_becomes_ready_when_it_is_due(void **state) {
  fixture *f = *state;
  const outbox_want want = {.batch_size = 10};
  publish_at(f->store, "later", f->now + SECOND);
  serve(f->store, "p", NULL, true, OUTBOX_ORDERING_KEY);
  outbox_progress progress = advance(f, f->store, OUTBOX_AGAIN, &want);
  assert_int_equal(progress.again_at, f->now + SECOND);
  f->now += SECOND;
  assert_true(advance(f, f->store, OUTBOX_AGAIN, &want).more);
  advance(f, f->store, OUTBOX_AGAIN, &want);
  assert_string_equal(in_hand(f->store), "later");
}

static void an_idle_claim_is_given_back(void **state) {
  fixture *f = *state;
  const outbox_want want = {.batch_size = 10};
  publish(f->store, "1");
  serve(f->store, "p", NULL, true, OUTBOX_ORDERING_KEY);
  advance(f, f->store, OUTBOX_AGAIN, &want);
  assert_true(advance(f, f->store, OUTBOX_DELIVERED, &want).deadline != 0);
  f->now += SECOND / 2;
  assert_true(advance(f, f->store, OUTBOX_AGAIN, &want).deadline != 0);
  f->now += SECOND;
  assert_true(advance(f, f->store, OUTBOX_AGAIN, &want).deadline == 0);
  assert_int_equal(number(f->db, "SELECT count(*) FROM outbox_claims"), 0);
}

static void what_is_due_at_once_is_asked_for_at_once(void **state) {
  fixture *f = *state;
  const outbox_want want = {.batch_size = 10}, nothing = {.batch_size = 0};
  outbox_progress progress;
  outbox_verdict now = {.outcome = OUTBOX_RETRY, .at = f->now, .error = text("no")};
  publish(f->store, "1");
  serve(f->store, "p", NULL, true, OUTBOX_ORDERING_KEY);
  advance(f, f->store, OUTBOX_AGAIN, &want);
  assert_ok(f->store, outbox_advance(f->store, &now, 1, &want, &progress));
  assert_true(progress.more);
  advance(f, f->store, OUTBOX_AGAIN, &want);
  assert_string_equal(in_hand(f->store), "1");
  assert_false(advance(f, f->store, OUTBOX_AGAIN, &nothing).more); /* nothing is wanted */
  assert_true(advance(f, f->store, OUTBOX_AGAIN, &want).count == 1);
}

static int count_thousand(void *thousands) {
  ++*(int *)thousands;
  return 0;
}

static void what_waits_behind_a_failed_entry_is_not_read_again(void **state) {
  fixture *f = *state;
  int thousands = 0;
  const outbox_want want = {.batch_size = 1}, nothing = {0};
  execute(f->db, "INSERT INTO outbox_entries (id, key) VALUES ('head', 'stuck')");
  execute(f->db, "WITH n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 30000)"
                 " INSERT INTO outbox_entries (key) SELECT 'stuck' FROM n");
  publish(f->store, "b");
  serve(f->store, "p", NULL, true, OUTBOX_ORDERING_KEY);
  advance(f, f->store, OUTBOX_AGAIN, &want);
  assert_string_equal(in_hand(f->store), "head");
  advance(f, f->store, OUTBOX_RETRY, &nothing);
  while (outbox_batch(f->store, 0) == NULL)
    advance(f, f->store, OUTBOX_AGAIN, &want);
  assert_string_equal(in_hand(f->store), "b");
  publish(f->store, "c");
  sqlite3_progress_handler(outbox_connection(f->store), 1000, count_thousand, &thousands);
  advance(f, f->store, OUTBOX_DELIVERED, &want);
  assert_string_equal(in_hand(f->store), "c");
  assert_true(thousands < 10); /* steps of SQLite; 30,000 rows take some 300 thousand */
}

static void a_retry_waits_for_what_is_ready_before_it(void **state) {
  fixture *f = *state;
  bool found;
  const outbox_want want = {.batch_size = 10};
  execute(f->db, "INSERT INTO outbox_entries (id, key) VALUES ('1', 'k'), ('2', 'k'), ('3', 'l')");
  assert_ok(f->store, outbox_retry_entry(f->store, (outbox_identity){text("2"), OUTBOX_ANY_SEQ},
                                         f->now, text("no"), &found));
  serve(f->store, "p", NULL, true, OUTBOX_ORDERING_KEY);
  advance(f, f->store, OUTBOX_AGAIN, &want);
  assert_string_equal(in_hand(f->store), "1 3");
  assert_true(advance(f, f->store, OUTBOX_DELIVERED, &want).more || outbox_batch(f->store, 0));
  if (outbox_batch(f->store, 0) == NULL) advance(f, f->store, OUTBOX_DELIVERED, &want);
  assert_string_equal(in_hand(f->store), "2");
}

static void processors_may_follow_one_another_on_a_store(void **state) {
  fixture *f = *state;
  outbox_service service = {.processor_id = text("q"), .except = true, .duration = SECOND};
  const outbox_want want = {.batch_size = 10}, leave = {.leave = true};
  publish(f->store, "1");
  serve(f->store, "p", NULL, true, OUTBOX_ORDERING_KEY);
  advance(f, f->store, OUTBOX_AGAIN, &want);
  assert_code(f->store, outbox_serve(f->store, &service), OUTBOX_MISUSE);
  advance(f, f->store, OUTBOX_AGAIN, &leave);
  assert_ok(f->store, outbox_serve(f->store, &service));
  advance(f, f->store, OUTBOX_AGAIN, &want);
  assert_string_equal(in_hand(f->store), "1");
}

static int count_row_batch(void *count) {
  ++*(int *)count;
  return 0;
}

/* One walk meets the heads of all namespaces that are parked. */
static void many_parked_namespaces_cost_no_more_than_one(void **state) {
  enum { SPACES = 60, ROWS = 6000, STEPS = 100 };
  fixture *f = *state;
  outbox_want want = {.batch_size = 1};
  char names[SPACES][12], sql[200];
  int work = 0, handed_out = 0;
  snprintf(sql, sizeof sql,
           "WITH RECURSIVE n (i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n LIMIT %d)"
           " INSERT INTO outbox_entries (id, namespace, key) SELECT i, i %% %d, i FROM n",
           ROWS, SPACES);
  execute(f->db, sql);
  serve(f->store, "p", NULL, true, OUTBOX_ORDERING_KEY);
  for (int i = 0; i < SPACES; i++) {
    snprintf(names[i], sizeof names[i], "%d", i);
    assert_ok(f->store, outbox_park(f->store, text(names[i])));
  }
  while (advance(f, f->store, OUTBOX_AGAIN, &want).more)
    ;
  want.where = OUTBOX_NEWEST;
  sqlite3_progress_handler(f->db, STEPS, count_row_batch, &work);
  for (int round = 0; round < 5; round++) {
    for (int i = SPACES; i-- > 0;) { /* each began before the one that comes before it */
      want.namespace = text(names[i]);
      advance(f, f->store, OUTBOX_PUT_OFF, &want);
      handed_out += outbox_batch(f->store, 0) != NULL;
      f->now += 1000;
    }
  }
  sqlite3_progress_handler(f->db, 0, NULL, NULL);
  assert_int_equal(handed_out, 5 * SPACES);
  assert_in_range(work, 1, 20 * ROWS * SPACES / STEPS / 10);
}

/* The lap that it has left does not go on to the end for nobody. */
static void a_namespace_that_fails_and_recovers_again_and_again_waits_for_no_lap(void **state) {
  fixture *f = *state;
  const outbox_want want = {.batch_size = 10};
  execute(f->db, "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 3000)"
                 " INSERT INTO outbox_entries (id, namespace) SELECT i, 'a' FROM n");
  serve(f->store, "p", NULL, true, OUTBOX_ORDERING_KEY);
  assert_ok(f->store, outbox_park(f->store, text("a")));
  while (advance(f, f->store, OUTBOX_DELIVERED, &want).more)
    ;
  for (int round = 0; round < 10; round++) {
    outbox_recover(f->store, text("a"));
    for (int i = 0; i < 3 && outbox_batch(f->store, 0) == NULL; i++)
      advance(f, f->store, OUTBOX_DELIVERED, &want);
    assert_non_null(outbox_batch(f->store, 0));
    assert_ok(f->store, outbox_park(f->store, text("a")));
    while (outbox_batch(f->store, 0) != NULL)
      advance(f, f->store, OUTBOX_DELIVERED, &want);
  }
  outbox_recover(f->store, text("a"));
  for (int i = 0; i < 400; i++) {
    advance(f, f->store, OUTBOX_DELIVERED, &want);
    f->now += 1000;
  }
  assert_int_equal(number(f->db, "SELECT count(*) FROM outbox_entries"), 0);
}

static bool is_twice_in_hand(outbox_store *store) {
  const outbox_entry *a, *b;
  for (size_t i = 0; (a = outbox_batch(store, i)) != NULL; i++)
    for (size_t j = 0; j < i && (b = outbox_batch(store, j)) != NULL; j++)
      if (a->seq == b->seq) return true;
  return false;
}

/* Also where more walks have begun since than a lane remembers. */
static void an_entry_without_a_key_is_met_once_in_a_round(void **state) {
  fixture *f = *state;
  outbox_want want = {.batch_size = 1};
  execute(f->db, "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 420)"
                 " INSERT INTO outbox_entries (id, namespace) SELECT i, 'a' FROM n;"
                 "INSERT INTO outbox_entries (id, namespace, key) VALUES ('b', 'b', 'k')");
  serve(f->store, "p", NULL, true, OUTBOX_ORDERING_KEY);
  assert_ok(f->store, outbox_park(f->store, text("a")));
  assert_ok(f->store, outbox_park(f->store, text("b")));
  while (advance(f, f->store, OUTBOX_AGAIN, &want).more)
    ;
  want.where = OUTBOX_NEWEST;
  want.namespace = text("a");
  advance(f, f->store, OUTBOX_AGAIN, &want);
  for (int i = 0; i < 200; i++) { /* each begins a walk of its own */
    assert_ok(f->store, outbox_park(f->store, text("b")));
    want.namespace = text("b");
    advance(f, f->store, OUTBOX_AGAIN, &want);
  }
  want.batch_size = 60;
  want.namespace = text("a");
  for (int i = 0; i < 4; i++) {
    advance(f, f->store, OUTBOX_AGAIN, &want);
    assert_false(is_twice_in_hand(f->store));
    want.where = OUTBOX_RANDOM;
  }
}

int test_advance(void) {
  const struct CMUnitTest tests[] = {
      TEST_WITHOUT_STORE(a_set_of_namespaces_is_written_in_one_way),
      TEST(processors_of_one_set_share_its_classes),
      TEST(in_strict_order_one_has_everything),
      TEST(of_sets_that_overlap_who_comes_later_stands_by),
      TEST(a_takeover_charges_what_was_in_hand_and_nothing_else),
      TEST(a_suspect_is_named_and_handed_out_by_its_place_alone),
      TEST(no_seq_comes_twice_when_what_was_just_found_is_settled),
      TEST(a_parked_namespace_is_left_behind_and_recovers_in_order),
      TEST(a_scheduled_entry_becomes_ready_when_it_is_due),
      TEST(an_idle_claim_is_given_back),
      TEST(what_is_due_at_once_is_asked_for_at_once),
      TEST(what_waits_behind_a_failed_entry_is_not_read_again),
      TEST(a_retry_waits_for_what_is_ready_before_it),
      TEST(processors_may_follow_one_another_on_a_store),
      TEST(many_parked_namespaces_cost_no_more_than_one),
      TEST(a_namespace_that_fails_and_recovers_again_and_again_waits_for_no_lap),
      TEST(an_entry_without_a_key_is_met_once_in_a_round),
  };
  return cmocka_run_group_tests_name("advance", tests, NULL, NULL);
}
