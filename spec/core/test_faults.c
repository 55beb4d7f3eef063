/*
** Failing calls to the operating system. Whichever call fails, an operation is done as a whole or
** not at all.
*/
#include "faults.h"
#include "trials.h"

/* Whether to try also that all later calls fail. Locks of shared memory are left out, because
** SQLite waits ten seconds each time for one that is never free. */
static bool lasts(int fault) {
  return fault != FAULT_SHM_LOCK;
}

static void arm(int fault, int n, bool for_ever) {
  arm_fault((enum fault)fault, n, for_ever);
}

static void whatever_call_fails_an_operation_is_done_or_not_done(void **state) {
  const trouble faults = {.step = is_long() ? 1 : 3,
                          .migrate_step = is_long() ? 1 : 3,
                          .kinds = FAULTS,
                          .names = FAULT_NAMES,
                          .lasts = lasts,
                          .arm = arm,
                          .disarm = disarm_fault};
  begin_faults();
  int tried = try_all(*state, &faults);
  end_faults();
  tally("I/O fault", tried);
  assert_in_range(tried, 1000, 100000);
}

int test_faults(void) {
  const struct CMUnitTest tests[] = {
      TEST_WITHOUT_STORE(whatever_call_fails_an_operation_is_done_or_not_done),
  };
  return cmocka_run_group_tests_name("faults", tests, NULL, NULL);
}
