/*
** The costs of the operations. No query scans or sorts the entries, however many there are. No
** operation runs more statements than necessary. And the names: each table is that of `main`.
*/
#include "support.h"

/* --- Plans ----------------------------------------------------------------------------------- */

/* Publishes to a namespace with subscriptions: one, many, and one that is scheduled. */
static void publish_copies(outbox_store *store, int64_t now) {
  outbox_message messages[36] = {{.id = {0}}};
  bool changed;
  assert_ok(store, outbox_subscribe(store, text("orders"), text("mail"), &changed));
  for (int i = 0; i < 36; i++)
    messages[i].namespace = text("orders");
  messages[34].deliver_at = messages[35].deliver_at = now + 1;
  assert_ok(store, outbox_publish(store, messages, 34));
  assert_ok(store, outbox_publish(store, messages + 34, 2));
  outbox_message derived = message("01900000-0000-7000-8000-000100000001");
  derived.namespace = text("orders");
  assert_ok(store, outbox_publish(store, &derived, 1));
  assert_ok(store, outbox_find_entries(store, text("01900000-0000-7000-8000-000100000002:mail")));
  outbox_finish(store);
  int64_t count;
  outbox_identity copy = {text("01900000-0000-7000-8000-000100000001:mail"), OUTBOX_ANY_SEQ};
  assert_ok(store, outbox_delete_entries(store, &copy, 1, &count));
  assert_int_equal(count, 1);
  assert_ok(store, outbox_unsubscribe(store, text("orders"), text("mail"), &changed));
}

/* Runs every operation in all its variants, so that the store has prepared every statement. */
static void run_every_operation(fixture *f) {
  static const outbox_bytes ANY = {NULL, 0};
  outbox_message many[17] = {{.id = {0}}}, later = message("later");
  outbox_bytes ids[] = {text("dead"), text("purged")};
  outbox_counts counts;
  int64_t count;
  assert_ok(f->store, outbox_release_claim(f->store, text("p"))); /* from an earlier run */
  publish(f->store, "away"); /* leaves a live interval without entries */
  assert_true(claim_some(f->store, "empty", f->now + SECOND, 1));
  assert_int_equal(delete_ids(f->store, claimed_ids(f->store, "empty")), 1);
  publish(f->store, "one two retried dead purged");
  assert_ok(f->store, outbox_publish(f->store, many, 17));
  later.deliver_at = f->now;
  f->now--;
  assert_ok(f->store, outbox_publish(f->store, &later, 1));
  f->now++;
  publish_copies(f->store, f->now);
  assert_true(claim(f->store, "p", f->now));
  assert_int_equal(delete_ids(f->store, "one"), 1); /* the interval begins later now */
  assert_true(claim(f->store, "p", f->now));
  assert_true(claim_some(f->store, "p", f->now, 4));
  assert_true(retry(f->store, "retried", f->now + SECOND));
  assert_true(bury(f->store, "dead"));
  assert_true(bury(f->store, "purged"));
  assert_ok(f->store, outbox_dead_entries(f->store, ANY, 0, 10));
  assert_ok(f->store, outbox_dead_entries(f->store, text("n"), 0, 10));
  assert_ok(f->store, outbox_ready_entries(f->store, text("n"), 0, 10));
  assert_ok(f->store, outbox_delayed_entries(f->store, ANY, 0, 10));
  assert_ok(f->store, outbox_ready_entries(f->store, ANY, INT64_MAX, -10));
  assert_ok(f->store, outbox_delayed_entries(f->store, text("n"), INT64_MAX, -10));
  assert_ok(f->store, outbox_dead_entries(f->store, ANY, INT64_MAX, -10));
  assert_ok(f->store, outbox_find_entries(f->store, text("dead")));
  assert_ok(f->store, outbox_requeue_entries(f->store, &ids[0], 1, &count));
  assert_ok(f->store, outbox_purge_entries(f->store, &ids[1], 1, &count));
  assert_ok(f->store, outbox_count_entries(f->store, &counts));
  bool done;
  assert_ok(f->store, outbox_renew_claim(f->store, text("p"), f->now, &done));
  assert_ok(f->store, outbox_get_claimed_entries(f->store, text("p"), 2, 1000));
  read_ids(f->store);
  assert_ok(f->store, outbox_hold_batch(f->store, text("p")));
  assert_true(claim(f->store, "p", f->now)); /* charges the entries in hand */
  assert_ok(f->store, outbox_get_claimed_entries(f->store, text("p"), 2, 0));
  read_ids(f->store);
  assert_ok(f->store, outbox_hold_batch(f->store, text("p")));
  execute(f->db, "UPDATE outbox_claims SET held = '!' || held, deadline = 0");
  assert_true(claim_some(f->store, "q", f->now, 3)); /* suspects them, and keeps them back */
  assert_true(claim_some(f->store, "q", f->now, 2));
  publish_at(f->store, "scheduled", f->now + SECOND);
  assert_true(bury(f->store, "scheduled"));
  assert_true(retry(f->store, "two", f->now + SECOND));
  assert_true(retry(f->store, "two", f->now + SECOND));
  assert_true(bury(f->store, "two"));
  assert_ok(f->store, outbox_retry_entry(f->store, any(text("retried")), f->now + SECOND,
                                         (outbox_bytes){NULL, 0}, &done));
  assert_ok(f->store, outbox_release_claim(f->store, text("p")));
  assert_ok(f->store, outbox_release_claim(f->store, text("q")));
  assert_true(claim(f->store, "p", f->now));
  assert_int_not_equal(strlen(leases(f->store)), 0);
  assert_ok(f->store, outbox_begin(f->store));
  assert_ok(f->store, outbox_begin(f->store));
  outbox_identity batch[100];
  assert_ok(f->store, outbox_get_claimed_entries(f->store, text("p"), 100, 0));
  size_t size = read_identities(f->store, batch, 100);
  assert_ok(f->store, outbox_delete_entries(f->store, batch, size, &count));
  assert_ok(f->store, outbox_rollback(f->store));
  assert_ok(f->store, outbox_commit(f->store));
  assert_ok(f->store, outbox_get_claimed_entries(f->store, text("p"), 1, 0));
  assert_int_equal(delete_ids(f->store, read_ids(f->store)), 1);
  assert_int_equal(delete_ids(f->store, "retried unknown"), 1);
  ids[0] = text("scheduled");
  ids[1] = text("two");
  assert_ok(f->store, outbox_purge_entries(f->store, ids, 2, &count));
}

/*
** Whether one step of a query plan is fast enough for a table of a million rows. A scan is cheap in
** three cases only: it scans the claims, it scans rows that the query itself has computed, or it
** stops at the first row. A SEARCH that names no index is a scan too: SQLite describes a max() that
** reads all rows in this way.
*/
static bool is_cheap(const char *sql, const char *detail) {
  static const char *const SMALL[] = {"outbox_claims", "l",       "ends",          "span",
                                      "ready",         "retries", "outbox_schema", "place"};
  char target[64], stops[100];
  if (strstr(detail, "TEMP B-TREE") != NULL || strstr(detail, "AUTOMATIC") != NULL) return false;
  if (strcmp(detail, "SEARCH main.outbox_ready") == 0) /* this one reads only the last row */
    return strstr(sql, "(SELECT max(seq) FROM main.outbox_ready)") != NULL;
  if (strncmp(detail, "SEARCH ", 7) == 0) return strstr(detail, " USING ") != NULL;
  if (strstr(detail, "CONSTANT ROW") != NULL || strstr(detail, "VALUES CLAUSE") != NULL)
    return true;
  if (sscanf(detail, "SCAN %63s", target) != 1) return true;
  const char *table = strncmp(target, "main.", 5) == 0 ? target + 5 : target;
  for (size_t i = 0; i < sizeof SMALL / sizeof *SMALL; i++)
    if (strcmp(table, SMALL[i]) == 0) return true;
  if (strncmp(table, "(subquery-", 10) == 0) return true;
  snprintf(stops, sizeof stops, "EXISTS (SELECT 1 FROM main.%s)", table);
  return strstr(sql, stops) != NULL ||
         strcmp(sql, "SELECT seq FROM main.outbox_ready ORDER BY seq LIMIT 1") == 0;
}

/* Returns the first step of the query's plan that is not cheap, or "" if all are. */
static const char *costly_step(sqlite3 *db, const char *sql) {
  static char detail[200];
  sqlite3_stmt *plan;
  char *explain = sqlite3_mprintf("EXPLAIN QUERY PLAN %s", sql);
  assert_int_equal(sqlite3_prepare_v2(db, explain, -1, &plan, NULL), SQLITE_OK);
  sqlite3_free(explain);
  detail[0] = '\0';
  while (detail[0] == '\0' && sqlite3_step(plan) == SQLITE_ROW) {
    const char *step = (const char *)sqlite3_column_text(plan, 3);
    if (!is_cheap(sql, step)) snprintf(detail, sizeof detail, "%s", step);
  }
  sqlite3_finalize(plan);
  return detail;
}

/* Whether each name of a table stands after `main.`, or is text, or that of the table's index. */
static bool is_qualified(const char *sql) {
  static const char *const BEFORE[] = {"'", "main.", "INDEXED BY "};
  for (const char *name = sql; (name = strstr(name + 1, "outbox_")) != NULL;) {
    bool found = false;
    for (size_t i = 0; i < sizeof BEFORE / sizeof *BEFORE; i++) {
      size_t size = strlen(BEFORE[i]);
      found |= (size_t)(name - sql) >= size && strncmp(name - size, BEFORE[i], size) == 0;
    }
    if (!found) return false;
  }
  return true;
}

/*
** Whether a limit is a parameter and nothing else. For such a limit, SQLite 3.47 and later compile
** the statement anew for each value.
*/
static bool is_limited_by_parameter(const char *sql) {
  static const char *const WORDS[] = {"LIMIT ?", "LIMIT -?", "OFFSET ?"};
  for (size_t i = 0; i < sizeof WORDS / sizeof *WORDS; i++)
    if (strstr(sql, WORDS[i]) != NULL) return true;
  return false;
}

/*
** Checks the names and the plan of each prepared statement of the connection. Returns how many were
** checked.
*/
static int check_plans(sqlite3 *db) {
  static const char *const WRITES_AND_READS[] = {"SELECT", "INSERT", "UPDATE", "DELETE"};
  enum { MAX_QUERIES = 100 };
  const char *queries[MAX_QUERIES];
  int count = 0;
  for (sqlite3_stmt *s = NULL; (s = sqlite3_next_stmt(db, s)) != NULL;) {
    const char *sql = sqlite3_sql(s);
    if (!is_qualified(sql)) fail_msg("a table without main.: %s", sql);
    if (is_limited_by_parameter(sql)) fail_msg("a limit that compiles anew: %s", sql);
    if (strstr(sql, "(SELECT count(*) FROM main.outbox_ready)") != NULL) continue; /* counts */
    for (int i = 0; i < 4; i++)
      if (strncmp(sql, WRITES_AND_READS[i], 6) == 0) queries[count++] = sql;
    assert_true(count < MAX_QUERIES);
  }
  for (int i = 0; i < count; i++) {
    const char *step = costly_step(db, queries[i]);
    if (step[0] != '\0') fail_msg("%s: %s", step, queries[i]);
  }
  return count;
}

static void the_check_itself_knows_a_scan_and_a_sort(void **state) {
  fixture *f = *state;
  static const char *const COSTLY[] = {
      "SELECT seq FROM outbox_entries WHERE payload = 1",
      "SELECT max(created_at) FROM outbox_dead",
      "SELECT id FROM outbox_entries AS e WHERE key = 'k'",
      "SELECT seq FROM outbox_entries WHERE seq > 1 ORDER BY payload",
      "DELETE FROM outbox_delayed WHERE created_at = 1",
  };
  for (size_t i = 0; i < sizeof COSTLY / sizeof *COSTLY; i++)
    assert_string_not_equal(costly_step(f->db, COSTLY[i]), "");
  assert_string_equal(costly_step(f->db, "SELECT id FROM outbox_entries WHERE seq = 1"), "");
}

static void the_check_itself_knows_a_table_without_main(void **state) {
  (void)state;
  assert_true(is_qualified("SELECT 1 FROM main.outbox_dead WHERE 'outbox_entries'"));
  assert_false(is_qualified("SELECT 1 FROM main.outbox_dead, outbox_entries"));
}

static void empty(fixture *f) {
  execute(f->db, "DELETE FROM outbox_entries; DELETE FROM outbox_delayed; DELETE FROM outbox_dead;"
                 "DELETE FROM outbox_claims");
}

static void no_query_scans_or_sorts_an_empty_outbox(void **state) {
  fixture *f = *state;
  run_every_operation(f);
  empty(f);
  assert_in_range(check_plans(f->db), 20, 60);
}

static void no_query_scans_or_sorts_a_full_outbox_that_was_analyzed(void **state) {
  fixture *f = *state;
  execute(f->db, "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 5000)"
                 " INSERT INTO outbox_entries (namespace, key, payload)"
                 " SELECT 'n' || i % 3, 'k' || i % 50, i FROM n");
  for (int i = 0; i < 20; i++)
    publish_at(f->store, (char[]){(char)('A' + i), '\0'}, f->now + 99 * SECOND);
  run_every_operation(f);
  execute(f->db, "ANALYZE");
  assert_in_range(check_plans(f->db), 20, 60);
  /* The same holds for a store that is opened after ANALYZE and plans with its statistics. */
  outbox_options options = test_options(f);
  close_store(f, f->store);
  f->store = open_store(f, &options);
  f->db = outbox_connection(f->store);
  execute(f->db, "DELETE FROM outbox_dead; DELETE FROM outbox_entries WHERE seq > 5000");
  run_every_operation(f);
  assert_in_range(check_plans(f->db), 20, 60);
}

/* Every variant of outbox_advance, as a processor calls it. */
static void advance_in_every_way(fixture *f, outbox_store *store, enum outbox_ordering ordering) {
  outbox_service service = {
      .processor_id = text("p"), .except = true, .duration = 2 * SECOND, .ordering = ordering};
  outbox_verdict verdicts[8];
  outbox_progress progress = {.count = 0};
  assert_ok(store, outbox_serve(store, &service));
  for (int i = 0; i < 40; i++) {
    outbox_want want = {.batch_size = 8,
                        .where = (enum outbox_where)(i % 5),
                        .place = i,
                        .namespace = text("n1"),
                        .leave = i == 39};
    if (i == 5) assert_ok(store, outbox_park(store, text("n1")));
    if (i == 30) outbox_recover(store, text("n1"));
    for (size_t j = 0; j < progress.count; j++)
      verdicts[j] = (outbox_verdict){.outcome = (enum outbox_outcome)((i + (int)j) % 5),
                                     .at = f->now + i % 3,
                                     .error = text("no")};
    assert_ok(store, outbox_advance(store, verdicts, progress.count, &want, &progress));
    f->now += SECOND;
  }
}

static void no_query_of_a_processor_scans_or_sorts(void **state) {
  fixture *f = *state;
  static const enum outbox_ordering ORDERINGS[] = {OUTBOX_ORDERING_KEY, OUTBOX_ORDERING_STRICT};
  outbox_options options = test_options(f);
  publish_at(f->store, "scheduled", f->now + 1);
  execute(f->db, "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 500)"
                 " INSERT INTO outbox_entries (namespace, key, payload)"
                 " SELECT 'n' || i % 3, 'k' || i % 50, i FROM n");
  for (int i = 0; i < 2; i++) {
    outbox_store *store = open_store(f, &options);
    advance_in_every_way(f, store, ORDERINGS[i]);
    assert_in_range(check_plans(outbox_connection(store)), 8, 50);
    close_store(f, store);
  }
}

/* --- Statements ------------------------------------------------------------------------------ */

/* Returns how many times the connection's statements were compiled anew since the last call. */
static int count_compilations(sqlite3 *db, int *statements) {
  int compilations = 0;
  *statements = 0;
  for (sqlite3_stmt *s = NULL; (s = sqlite3_next_stmt(db, s)) != NULL; ++*statements)
    compilations += sqlite3_stmt_status(s, SQLITE_STMTSTATUS_REPREPARE, 1);
  return compilations;
}

static void the_check_itself_knows_a_statement_that_was_compiled_anew(void **state) {
  fixture *f = *state;
  int statements;
  count_compilations(f->db, &statements);
  execute(f->db, "CREATE TABLE another (a)");
  publish(f->store, "x");
  assert_int_not_equal(count_compilations(f->db, &statements), 0);
}

/* The same operations, each time with other limits. */
static void no_statement_is_compiled_anew_for_the_values_bound_to_it(void **state) {
  fixture *f = *state;
  static const outbox_bytes ANY = {NULL, 0};
  enum { TIMES = 20 };
  outbox_message messages[6] = {{.id = {0}}};
  int statements, on = 0;
  assert_int_equal(sqlite3_db_config(f->db, SQLITE_DBCONFIG_ENABLE_QPSG, -1, &on), SQLITE_OK);
  assert_int_equal(on, 1);
  for (int own = 1; own >= 0; own--) { /* an attached store may not count on the setting */
    if (!own) sqlite3_db_config(f->db, SQLITE_DBCONFIG_ENABLE_QPSG, 0, NULL);
    empty(f);
    run_every_operation(f);
    for (int i = 0; i < 3; i++) { /* without ids of their own; soon the next seq is certain */
      memset(messages, 0, sizeof messages);
      assert_ok(f->store, outbox_publish(f->store, messages, 6));
    }
    count_compilations(f->db, &statements);
    for (int i = 1; i <= TIMES; i++) {
      memset(messages, 0, sizeof messages);
      assert_ok(f->store, outbox_publish(f->store, messages, 6));
      assert_true(claim_some(f->store, "p", f->now + SECOND, i));
      assert_ok(f->store, outbox_get_claimed_entries(f->store, text("p"), i, 0));
      delete_ids(f->store, read_ids(f->store));
      assert_ok(f->store, outbox_ready_entries(f->store, ANY, i, i));
      assert_ok(f->store, outbox_delayed_entries(f->store, ANY, INT64_MAX - i, -i));
      assert_ok(f->store, outbox_dead_entries(f->store, ANY, 0, i));
      outbox_finish(f->store);
    }
    assert_int_equal(count_compilations(f->db, &statements), 0);
    assert_in_range(statements, 10, 78);
  }
}

static int count_statement(unsigned type, void *context, void *statement, void *sql) {
  (void)type, (void)statement, (void)sql;
  ++*(int *)context;
  return 0;
}

static void a_batch_takes_no_more_statements_than_it_must(void **state) {
  fixture *f = *state;
  enum { BATCH = 100 };
  outbox_message one = {.payload = text("x")}, many[BATCH] = {{.id = {0}}};
  outbox_identity entries[BATCH];
  int64_t deleted;
  int statements = 0;
  assert_ok(f->store, outbox_publish(f->store, many, BATCH)); /* the first call checks the schema */
  sqlite3_trace_v2(f->db, SQLITE_TRACE_STMT, count_statement, &statements);

  assert_ok(f->store, outbox_publish(f->store, &one, 1));
  assert_int_equal(statements, 1); /* the INSERT */

  statements = 0;
  one.id = text("mine");
  assert_ok(f->store, outbox_publish(f->store, &one, 1));
  assert_int_equal(statements, 4); /* BEGIN, whether the id is taken, INSERT, COMMIT */

  statements = 0;
  memset(many, 0, sizeof many);
  assert_ok(f->store, outbox_publish(f->store, many, BATCH));
  /* BEGIN, the next seq, 6 inserts of 16 rows and 4 of one, COMMIT */
  assert_int_equal(statements, 2 + 6 + 4 + 1);

  statements = 0;
  assert_true(claim(f->store, "p", NOW));
  /*
  ** Schema version, the claims, whether there is work, BEGIN, the claims, whether any is delayed,
  ** the ends of the gap, the new claim, COMMIT
  */
  assert_int_equal(statements, 9);

  statements = 0;
  assert_ok(f->store, outbox_get_claimed_entries(f->store, text("p"), BATCH, 0));
  assert_int_equal(read_identities(f->store, entries, BATCH), BATCH);
  assert_int_equal(statements, 1); /* the entries */

  statements = 0;
  assert_ok(f->store, outbox_delete_entries(f->store, entries, BATCH, &deleted));
  assert_int_equal(deleted, BATCH);
  assert_int_equal(statements, 5); /* BEGIN, the mark, whether all are there, one DELETE, COMMIT */

  execute(f->db, "DELETE FROM outbox_entries; DELETE FROM outbox_claims");
  statements = 0;
  assert_false(claim(f->store, "p", NOW));
  assert_int_equal(statements, 4); /* the first three of above, next due time */
  sqlite3_trace_v2(f->db, 0, NULL, NULL);
}

static void an_advance_takes_no_more_statements_than_it_must(void **state) {
  fixture *f = *state;
  outbox_service service = {.processor_id = text("p"),
                            .except = true,
                            .duration = 2 * SECOND,
                            .ordering = OUTBOX_ORDERING_KEY};
  outbox_want want = {.batch_size = 4};
  outbox_progress progress;
  outbox_verdict verdicts[4];
  int statements = 0;
  publish(f->store, "1 2 3 4 5 6");
  assert_ok(f->store, outbox_serve(f->store, &service));
  assert_ok(f->store, outbox_advance(f->store, NULL, 0, &want, &progress));
  for (int i = 0; i < 4; i++)
    verdicts[i] = (outbox_verdict){.outcome = OUTBOX_DELIVERED};
  sqlite3_trace_v2(f->db, SQLITE_TRACE_STMT, count_statement, &statements);
  assert_ok(f->store, outbox_advance(f->store, verdicts, 4, &want, &progress));
  assert_int_equal(progress.count, 2);
  /*
  ** Reading: BEGIN, the data version, whether any entry is delayed, the walk, COMMIT.
  ** Writing: BEGIN, whether all four are there, one DELETE, the claim, COMMIT. Nobody else has
  ** written, so the claims are known, and an entry that was found is the last one, so no mark.
  */
  assert_int_equal(statements, 5 + 5);

  statements = 0;
  assert_ok(f->store, outbox_advance(f->store, verdicts, 2, &want, &progress));
  assert_int_equal(progress.count, 0);
  assert_int_equal(statements, 5 + 6); /* with the mark */
  statements = 0;
  want.batch_size = 0;
  assert_ok(f->store, outbox_advance(f->store, NULL, 0, &want, &progress));
  assert_int_equal(statements, 5); /* with the claims: nothing to write, so no lock is taken */

  publish(f->store, "7 8 9 10 11");
  assert_true(retry(f->store, "11", NOW + SECOND));
  want.batch_size = 2;
  assert_ok(f->store, outbox_advance(f->store, NULL, 0, &want, &progress));
  statements = 0;
  assert_ok(f->store, outbox_advance(f->store, verdicts, 2, &want, &progress));
  assert_int_equal(progress.count, 2);
  /* Also: whether any waits for a retry, the due ones, when the next falls due. */
  assert_int_equal(statements, 5 + 3 + 5);
  publish(f->store, "12");
  statements = 0;
  assert_ok(f->store, outbox_advance(f->store, verdicts, 2, &want, &progress));
  assert_int_equal(progress.count, 1);
  assert_int_equal(statements, 5 + 3 + 6); /* with the claims, because somebody has written */
  sqlite3_trace_v2(f->db, 0, NULL, NULL);
}

/* The work of a processor between two calls of its publisher, in one transaction. */
static void from_batch_to_batch_takes_no_more_statements_than_it_must(void **state) {
  fixture *f = *state;
  outbox_identity entries[4];
  int64_t deleted;
  bool renewed;
  int statements = 0;
  publish(f->store, "1 2 3 4 5 6");
  assert_true(claim(f->store, "p", NOW));
  assert_ok(f->store, outbox_get_claimed_entries(f->store, text("p"), 4, 0));
  assert_int_equal(read_identities(f->store, entries, 4), 4);

  sqlite3_trace_v2(f->db, SQLITE_TRACE_STMT, count_statement, &statements);
  assert_ok(f->store, outbox_begin(f->store));
  assert_ok(f->store, outbox_renew_claim(f->store, text("p"), NOW, &renewed));
  assert_ok(f->store, outbox_delete_entries(f->store, entries, 4, &deleted));
  assert_ok(f->store, outbox_get_claimed_entries(f->store, text("p"), 4, 0));
  assert_string_equal(read_ids(f->store), "5 6");
  assert_ok(f->store, outbox_hold_batch(f->store, text("p")));
  assert_ok(f->store, outbox_commit(f->store));
  /*
  ** BEGIN, the renewal, the mark, whether all are there, one DELETE, the next batch, its mark as in
  ** hand, COMMIT
  */
  assert_int_equal(statements, 8);
  sqlite3_trace_v2(f->db, 0, NULL, NULL);
}

int test_plans(void) {
  const struct CMUnitTest tests[] = {
      TEST(the_check_itself_knows_a_scan_and_a_sort),
      TEST(the_check_itself_knows_a_table_without_main),
      TEST(no_query_scans_or_sorts_an_empty_outbox),
      TEST(no_query_scans_or_sorts_a_full_outbox_that_was_analyzed),
      TEST(no_query_of_a_processor_scans_or_sorts),
      TEST(an_advance_takes_no_more_statements_than_it_must),
      TEST(the_check_itself_knows_a_statement_that_was_compiled_anew),
      TEST(no_statement_is_compiled_anew_for_the_values_bound_to_it),
      TEST(a_batch_takes_no_more_statements_than_it_must),
      TEST(from_batch_to_batch_takes_no_more_statements_than_it_must),
  };
  return cmocka_run_group_tests_name("plans", tests, NULL, NULL);
}
