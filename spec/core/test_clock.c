/*
** The clock that a claim asks twice: before the lock, and inside it.
*/
#include "support.h"

/* A clock that is asked before the lock and inside it; something happens in each call. */
typedef struct two_clocks {
  fixture *f;
  int calls;
  int64_t pause;            /* time that passes after the first answer: the process is stopped */
  outbox_store *other;      /* claims in that time; NULL: nobody does */
  outbox_store *store;      /* used in the second call */
  int code, written, fails; /* what its publish and another's write give; whether the call fails */
} two_clocks;

static int ask_two_clocks(void *context, int64_t *now) {
  two_clocks *c = context;
  *now = c->f->now;
  if (++c->calls == 1) {
    c->f->now += c->pause;
    if (c->other != NULL) assert_true(claim(c->other, "alive", c->f->now + 30 * SECOND));
  } else if (c->store != NULL) {
    outbox_message one = message("inside");
    sqlite3 *writer = connect_plainly(c->f);
    c->code = outbox_publish(c->store, &one, 1);
    c->written = sqlite3_exec(writer, "DELETE FROM outbox_dead", NULL, NULL, NULL);
    disconnect(c->f, writer);
  }
  return c->calls > 1 ? c->fails : 0;
}

static outbox_store *open_with_two_clocks(fixture *f, two_clocks *clocks) {
  outbox_options options = test_options(f);
  options.clock = ask_two_clocks;
  options.clock_context = clocks;
  return open_store(f, &options);
}

static void a_process_that_was_stopped_before_the_lock_takes_no_live_claim(void **state) {
  fixture *f = *state;
  for (int limited = 0; limited <= 1; limited++) {
    two_clocks clocks = {.f = f, .other = f->store, .pause = 3600 * SECOND};
    outbox_claimed claimed;
    publish(f->store, "a b");
    outbox_store *stopped = open_with_two_clocks(f, &clocks);
    assert_ok(stopped, outbox_claim_entries(stopped, text("stopped"), f->now + 9000 * SECOND,
                                            limited, &claimed));
    assert_false(claimed.any);
    assert_int_equal(clocks.calls, 2);
    assert_string_equal(claimed_ids(f->store, "alive"), "a b");
    assert_int_equal(delete_ids(f->store, "a b"), 2);
    assert_ok(f->store, outbox_release_claim(f->store, text("alive")));
    close_store(f, stopped);
  }
}

static void a_clock_set_back_while_a_claim_waits_frees_what_was_claimed_far_ahead(void **state) {
  fixture *f = *state;
  publish(f->store, "a");
  assert_true(claim(f->store, "ahead", f->now + 30 * SECOND));
  two_clocks clocks = {.f = f, .pause = -6 * SECOND};
  outbox_store *store = open_with_two_clocks(f, &clocks);
  assert_true(claim(store, "p", f->now + 30 * SECOND));
}

static void the_clock_inside_the_lock_cannot_use_the_store(void **state) {
  fixture *f = *state;
  two_clocks clocks = {.f = f};
  clocks.store = open_with_two_clocks(f, &clocks);
  publish(f->store, "a");
  assert_true(claim(clocks.store, "p", f->now + SECOND));
  assert_int_equal(clocks.code, OUTBOX_MISUSE);
  assert_int_equal(clocks.written, SQLITE_BUSY);
  assert_string_equal(ids_in(f->db, "entries"), "a");
  outbox_store *again = clocks.store;
  clocks.store = NULL;
  publish(again, "b");
}

static void a_clock_that_fails_inside_the_lock_rolls_the_claim_back(void **state) {
  fixture *f = *state;
  two_clocks clocks = {.f = f, .fails = -1};
  outbox_claimed claimed;
  outbox_store *store = open_with_two_clocks(f, &clocks);
  publish(f->store, "a");
  assert_code(store, outbox_claim_entries(store, text("p"), f->now + SECOND, 0, &claimed),
              OUTBOX_CALLBACK);
  assert_false(outbox_in_transaction(store));
  publish(f->store, "b");
  assert_string_equal(leases(f->store), "");
}

int test_clock(void) {
  const struct CMUnitTest tests[] = {
      TEST(a_process_that_was_stopped_before_the_lock_takes_no_live_claim),
      TEST(a_clock_set_back_while_a_claim_waits_frees_what_was_claimed_far_ahead),
      TEST(the_clock_inside_the_lock_cannot_use_the_store),
      TEST(a_clock_that_fails_inside_the_lock_rolls_the_claim_back),
  };
  return cmocka_run_group_tests_name("clock", tests, NULL, NULL);
}
