/*
** The tests of the core. They use its public header alone and real database files.
**
**     core_test [RUN [SKIP]]
**
** RUN is a pattern for the names of the tests to run, such as 'a_deadline*'. SKIP is a pattern for
** the names of the tests to skip.
*/
#include "allocations.h"
#include "support.h"

int main(int argc, char **argv) {
  static int (*const GROUPS[])(void) = {
      test_open,   test_schema, test_transactions, test_sql,    test_publish, test_ids,
      test_values, test_claims, test_clock,        test_limits, test_delayed, test_settle,
      test_dead,   test_plans,  test_process,      test_attach, test_memory,  test_faults,
      test_power,  test_boxes,  test_advance,      test_lanes,
  };
  int failures = 0;
  begin_allocations();
  if (argc > 1) cmocka_set_test_filter(argv[1]);
  if (argc > 2) cmocka_set_skip_filter(argv[2]);
  for (size_t i = 0; i < sizeof GROUPS / sizeof *GROUPS; i++)
    failures += GROUPS[i]();
  return failures;
}
