/*
** Claims by hand beside those of processors: both are boxes in one table, and live boxes never
** overlap. And what becomes of the entries that were in hand when a claim lapses.
*/
#include <time.h>

#include "support.h"

static void serve(outbox_store *store, const char *id, const char *namespace) {
  outbox_bytes name = text(namespace != NULL ? namespace : "");
  outbox_service service = {.processor_id = text(id),
                            .except = namespace == NULL,
                            .ordering = OUTBOX_ORDERING_KEY,
                            .namespaces = &name,
                            .namespace_count = namespace != NULL,
                            .duration = 2 * SECOND};
  assert_ok(store, outbox_serve(store, &service));
}

/* Has delivered all that is in hand, and takes the next batch. */
static outbox_progress advance(outbox_store *store, const outbox_want *want) {
  return advance_all(store, (outbox_verdict){.outcome = OUTBOX_DELIVERED}, want);
}

/* Claims by hand, reads and holds. Returns the ids. */
static const char *take(outbox_store *store, const char *processor, int64_t deadline) {
  static char ids[400];
  assert_true(claim(store, processor, deadline));
  snprintf(ids, sizeof ids, "%s", claimed_ids(store, processor));
  assert_ok(store, outbox_hold_batch(store, text(processor)));
  return ids;
}

/* The ids, attempts and causes of all entries that wait, by their places. */
static const char *charges(fixture *f) {
  return string(f->db, "SELECT group_concat(id || attempts || ifnull(cause, ''), ' ') FROM"
                       " (SELECT id, seq AS place, attempts, last_error AS cause"
                       " FROM outbox_entries UNION ALL SELECT id || '~', position, attempts,"
                       " last_error FROM outbox_delayed ORDER BY place)");
}

/* --- By hand and by lanes -------------------------------------------------------------------- */

static outbox_store *open_lane(fixture *f, const char *id, const char *namespace) {
  outbox_options options = test_options(f);
  outbox_store *lane = open_store(f, &options);
  serve(lane, id, namespace);
  return lane;
}

static void nothing_is_claimed_by_hand_while_a_lane_holds_a_share(void **state) {
  fixture *f = *state;
  const outbox_want want = {.batch_size = 1}, leave = {.leave = true};
  outbox_store *lane = open_lane(f, "lane", "elsewhere");
  outbox_claimed claimed;
  publish(f->store, "a b");
  execute(f->db, "INSERT INTO outbox_entries (namespace) VALUES ('elsewhere')");
  advance(lane, &want);
  assert_string_equal(leases(f->store), "lane:lane");
  sqlite3 *writer = connect_plainly(f);
  execute(writer, "BEGIN IMMEDIATE"); /* no lock is asked for */
  assert_ok(f->store, outbox_claim_entries(f->store, text("p"), NOW + SECOND, 0, &claimed));
  assert_false(claimed.any);
  assert_int_equal(claimed.again_at, NOW + 2 * SECOND + 1);
  disconnect(f, writer);
  publish_at(f->store, "later", NOW + SECOND);
  assert_ok(f->store, outbox_claim_entries(f->store, text("p"), NOW + SECOND, 1, &claimed));
  assert_false(claimed.any);
  assert_int_equal(claimed.again_at, NOW + SECOND);
  advance(lane, &leave);
  assert_true(claim(f->store, "p", NOW + SECOND));
  assert_string_equal(claimed_ids(f->store, "p"), "a b");
}

static void a_lane_stands_by_while_a_claim_by_hand_lives_and_begins_at_the_beginning(void **state) {
  fixture *f = *state;
  const outbox_want want = {.batch_size = 10}, join = {.batch_size = 10, .join = true};
  outbox_store *lane = open_lane(f, "lane", NULL);
  publish(f->store, "a b c");
  assert_true(claim_some(f->store, "p", NOW + SECOND, 3));
  publish(f->store, "d");
  for (int i = 0; i < 3; i++) {
    outbox_progress progress = advance(lane, &join);
    assert_int_equal(progress.count, 0);
    assert_true(progress.overlapped);
    assert_int_equal(progress.again_at, NOW + SECOND + 1);
  }
  assert_int_equal(delete_ids(f->store, "a"), 1);
  assert_true(retry(f->store, "b", NOW + SECOND / 2));
  assert_ok(f->store, outbox_release_claim(f->store, text("p")));
  for (int i = 0; i < 2 && in_hand(lane)[0] == '\0'; i++)
    advance(lane, &want);
  assert_string_equal(in_hand(lane), "c d");
  f->now = NOW + SECOND / 2;
  advance(lane, &want);
  assert_string_equal(in_hand(lane), "b");
}

/* A lane that has enrolled and holds nothing yet is in nobody's way. */
static void a_lane_that_stands_by_keeps_nobody_waiting(void **state) {
  fixture *f = *state;
  const outbox_want join = {.batch_size = 10, .join = true};
  outbox_store *lane = open_lane(f, "lane", NULL);
  publish(f->store, "a b");
  assert_true(claim_some(f->store, "p", NOW + SECOND, 1));
  advance(lane, &join);
  assert_string_equal(leases(f->store), "lane:lane p:1-1");
  assert_true(claim(f->store, "q", NOW + SECOND));
  assert_string_equal(claimed_ids(f->store, "q"), "b");
}

static void
a_claim_by_hand_is_renewed_and_released_without_the_lane_of_its_processor(void **state) {
  fixture *f = *state;
  const outbox_want want = {.batch_size = 1};
  outbox_store *lane = open_lane(f, "p", NULL);
  bool renewed;
  publish(f->store, "a");
  advance(lane, &want);
  assert_ok(f->store, outbox_renew_claim(f->store, text("p"), NOW + 9 * SECOND, &renewed));
  assert_false(renewed);
  assert_ok(f->store, outbox_release_claim(f->store, text("p")));
  assert_ok(f->store, outbox_hold_batch(f->store, text("p")));
  assert_string_equal(string(f->db, "SELECT held || ' ' || (deadline - claimed_at)"
                                    " FROM outbox_claims"),
                      "1 2000000");
}

/* --- What was in hand ------------------------------------------------------------------------ */

static void a_claim_says_which_places_are_in_hand(void **state) {
  fixture *f = *state;
  outbox_lease lease;
  publish(f->store, "a b c d e");
  assert_true(claim_some(f->store, "p", NOW + SECOND, 3));
  assert_true(retry(f->store, "b", NOW));
  assert_true(claim_some(f->store, "q", NOW + SECOND, 1));
  publish(f->store, "f");
  assert_string_equal(take(f->store, "p", NOW + SECOND), "a b c e f");
  assert_ok(f->store, outbox_leases(f->store));
  assert_code(f->store, outbox_next_lease(f->store, &lease), OUTBOX_ROW);
  assert_true(same_bytes(lease.held, text("1+2,2+1")));
  assert_code(f->store, outbox_next_lease(f->store, &lease), OUTBOX_ROW);
  assert_null(lease.held.data);
}

static void whoever_sees_a_lapsed_claim_charges_what_was_in_hand(void **state) {
  fixture *f = *state;
  const outbox_want want = {.batch_size = 1};
  outbox_store *lane = open_lane(f, "lane", NULL);
  publish(f->store, "a b c");
  assert_true(retry(f->store, "b", NOW));
  assert_string_equal(take(f->store, "p", NOW + SECOND), "a b c");
  assert_int_equal(delete_ids(f->store, "c"), 1);
  f->now += SECOND + 1;
  advance(lane, &want);
  assert_string_equal(charges(f), "a1" OUTBOX_LAPSED " b~2" OUTBOX_LAPSED);
  advance(lane, &want);
  assert_string_equal(in_hand(lane), "b");
  f->now += 2 * SECOND + 1;
  assert_true(claim(f->store, "q", f->now + SECOND));
  assert_string_equal(charges(f), "a1" OUTBOX_LAPSED " b~3" OUTBOX_LAPSED);
}

static void what_was_settled_before_the_crash_is_not_charged_again(void **state) {
  fixture *f = *state;
  publish(f->store, "a b");
  assert_string_equal(take(f->store, "p", NOW + SECOND), "a b");
  assert_true(retry(f->store, "a", NOW + 9 * SECOND));
  assert_true(claim(f->store, "p", NOW + SECOND)); /* its own: b was cut off */
  assert_string_equal(charges(f), "a~1refused b1" OUTBOX_LAPSED);
}

static void a_released_or_renewed_claim_charges_nothing(void **state) {
  fixture *f = *state;
  bool renewed;
  publish(f->store, "a b");
  take(f->store, "p", NOW + SECOND);
  assert_ok(f->store, outbox_renew_claim(f->store, text("p"), NOW + SECOND, &renewed));
  assert_true(renewed);
  assert_string_equal(take(f->store, "p", NOW + SECOND), "a b");
  assert_ok(f->store, outbox_release_claim(f->store, text("p")));
  f->now += 2 * SECOND;
  assert_true(claim(f->store, "q", f->now));
  assert_string_equal(charges(f), "a0 b0");
}

static void text_that_is_no_list_of_places_charges_nothing(void **state) {
  static const char *const DAMAGED[] = {"",  "!",  "x",  "1+",
                                        "+", "1-", "!x", "9223372036854775807+9"};
  fixture *f = *state;
  publish(f->store, "a b");
  for (size_t i = 0; i < sizeof DAMAGED / sizeof *DAMAGED; i++) {
    char sql[120];
    assert_true(claim(f->store, "p", f->now));
    snprintf(sql, sizeof sql, "UPDATE outbox_claims SET held = '%s'", DAMAGED[i]);
    execute(f->db, sql);
    f->now++;
    assert_true(claim(f->store, "q", f->now));
    assert_ok(f->store, outbox_release_claim(f->store, text("q")));
  }
  assert_int_equal(number(f->db, "SELECT count(*) FROM outbox_entries"), 2);
}

/* --- Overtime -------------------------------------------------------------------------------- */

/* Has the heartbeat give up, and waits until it has said so. */
static void exceed(fixture *f, outbox_store *store, const char *processor) {
  time_t end = time(NULL) + 60;
  char sql[120];
  snprintf(sql, sizeof sql, "SELECT held LIKE '!%%' FROM outbox_claims WHERE processor_id = '%s'",
           processor);
  assert_ok(store, outbox_start_heartbeat(store, text(processor), 1000, 2000));
  while (!number(f->db, sql)) {
    assert_true(time(NULL) < end);
    sqlite3_sleep(1);
  }
  outbox_stop_heartbeat(store);
}

static void what_was_in_hand_after_overtime_is_suspected_and_not_charged(void **state) {
  fixture *f = *state;
  const outbox_want want = {.batch_size = 10};
  outbox_store *lane = open_lane(f, "lane", NULL);
  publish(f->store, "a b c");
  assert_true(retry(f->store, "b", NOW));
  assert_string_equal(take(f->store, "p", NOW + SECOND), "a b c");
  exceed(f, f->store, "p");
  exceed(f, f->store, "p"); /* once is enough */
  assert_string_equal(string(f->db, "SELECT held FROM outbox_claims"), "!1+2");
  f->now += 10 * SECOND;
  advance(lane, &want);
  assert_string_equal(charges(f),
                      "a~0" OUTBOX_OVERTIME " b~1" OUTBOX_OVERTIME " c~0" OUTBOX_OVERTIME);
  assert_int_equal(number(f->db, "SELECT count(*) FROM outbox_delayed WHERE due_at = delayed_at"
                                 " OR position = 2"),
                   3);
  advance(lane, &want);
  assert_string_equal(in_hand(lane), "b"); /* it was charged before, so it is no suspect */
  assert_true(same_bytes(outbox_suspects(lane, 0)->id, text("a")));
  assert_true(same_bytes(outbox_suspects(lane, 1)->id, text("c")));
}

static void overtime_of_a_lane_is_told_by_who_takes_over_by_hand(void **state) {
  fixture *f = *state;
  const outbox_want want = {.batch_size = 2};
  outbox_store *lane = open_lane(f, "lane", NULL);
  publish(f->store, "a b c");
  advance(lane, &want);
  exceed(f, lane, "lane");
  f->now += 10 * SECOND;
  assert_true(claim(f->store, "p", f->now));
  assert_string_equal(claimed_ids(f->store, "p"), "a b c");
  assert_string_equal(charges(f), "a~0" OUTBOX_OVERTIME " b~0" OUTBOX_OVERTIME " c0");
}

static void who_answers_after_overtime_charges_nothing(void **state) {
  fixture *f = *state;
  bool renewed;
  publish(f->store, "a b");
  take(f->store, "p", NOW + SECOND);
  exceed(f, f->store, "p");
  assert_ok(f->store, outbox_renew_claim(f->store, text("p"), NOW + SECOND, &renewed));
  assert_true(renewed);
  assert_true(claim(f->store, "p", NOW + SECOND));
  assert_string_equal(charges(f), "a0 b0");
}

static void
an_id_that_was_published_twice_does_not_keep_a_claim_from_being_taken_over(void **state) {
  fixture *f = *state;
  publish_at(f->store, "a", NOW + 90 * SECOND);
  publish_at(f->store, "a~1", NOW + 90 * SECOND);
  execute(f->db, "INSERT INTO outbox_entries (id) VALUES ('a'), ('b')");
  assert_true(claim(f->store, "p", NOW));
  execute(f->db, "UPDATE outbox_claims SET held = '!1+1'");
  f->now++;
  assert_true(claim(f->store, "q", f->now));
  assert_string_equal(claimed_ids(f->store, "q"), "a b");
  assert_string_equal(ids_in(f->db, "entries"), "a");
}

int test_boxes(void) {
  const struct CMUnitTest tests[] = {
      TEST(nothing_is_claimed_by_hand_while_a_lane_holds_a_share),
      TEST(a_lane_stands_by_while_a_claim_by_hand_lives_and_begins_at_the_beginning),
      TEST(a_lane_that_stands_by_keeps_nobody_waiting),
      TEST(a_claim_by_hand_is_renewed_and_released_without_the_lane_of_its_processor),
      TEST(a_claim_says_which_places_are_in_hand),
      TEST(whoever_sees_a_lapsed_claim_charges_what_was_in_hand),
      TEST(what_was_settled_before_the_crash_is_not_charged_again),
      TEST(a_released_or_renewed_claim_charges_nothing),
      TEST(text_that_is_no_list_of_places_charges_nothing),
      TEST(what_was_in_hand_after_overtime_is_suspected_and_not_charged),
      TEST(overtime_of_a_lane_is_told_by_who_takes_over_by_hand),
      TEST(who_answers_after_overtime_charges_nothing),
      TEST(an_id_that_was_published_twice_does_not_keep_a_claim_from_being_taken_over),
  };
  return cmocka_run_group_tests_name("boxes", tests, NULL, NULL);
}
