/*
** Lanes: several processors on one outbox, in random schedules, against an oracle. Each has a store
** of its own, all have one clock, which the test turns. Between the reading of one and its lock,
** others may run. An entry that is delivered before an earlier one of its key is done is a fault;
** so are two live claims that overlap, and anything that is left after all is well again.
*/
#include <stdlib.h>

#include "../../src/box.h"
#include "support.h"

enum { PROCESSORS = 4, SPACES = 3, KEYS = 4, MOST = 20000 };

/* Which sets the processors serve. */
enum sets { SAME, APART, OVERLAPPING };

typedef struct delivery {
  int line; /* -1: it has no key */
  bool done;
  int delivered;
} delivery;

typedef struct processor {
  outbox_store *store;
  bool alive, stopped, called, busy, parked[SPACES];
  int64_t until, probe_at[SPACES], suspects[8];
  size_t count, suspect_count;
  outbox_verdict verdicts[64];
  char id[16];
} processor;

typedef struct world {
  fixture *f;
  sqlite3 *db;
  unsigned seed;
  enum sets sets;
  bool fails, operated, nested, up[SPACES];
  int depth, names;
  int64_t last, line_done[SPACES * KEYS];
  int disorder, overlaps, duplicates, calls, lost;
  processor processors[PROCESSORS];
  delivery messages[MOST];
} world;

static world *the_world; /* for callbacks of SQLite */

static int roll(world *w, int n) {
  w->seed = w->seed * 1103515245u + 12345u;
  return (int)((w->seed >> 8) % (unsigned)n);
}

static const char *const NAMES[SPACES] = {"a", "b", "c"};

/* --- The application and the oracle ---------------------------------------------------------- */

static void publish_some(world *w) {
  sqlite3_exec(w->db, "BEGIN IMMEDIATE", NULL, NULL, NULL);
  for (int n = 1 + roll(w, 6); n > 0 && w->last < MOST - 1; n--) {
    int space = roll(w, SPACES), key = roll(w, KEYS + 1);
    char *sql = key < KEYS
                    ? sqlite3_mprintf("INSERT INTO outbox_entries (id, namespace, key) VALUES"
                                      " ('m%lld', '%s', 'k%d')",
                                      w->last + 1, NAMES[space], key)
                    : sqlite3_mprintf("INSERT INTO outbox_entries (id, namespace) VALUES"
                                      " ('m%lld', '%s')",
                                      w->last + 1, NAMES[space]);
    execute(w->db, sql);
    sqlite3_free(sql);
    w->messages[++w->last] = (delivery){.line = key < KEYS ? space * KEYS + key : -1};
  }
  sqlite3_exec(w->db, "COMMIT", NULL, NULL, NULL);
}

static void deliver(world *w, int64_t place, bool zombie) {
  delivery *m = &w->messages[place];
  if (m->delivered++ > 0) w->duplicates++;
  if (m->line >= 0 && !zombie)
    for (int64_t i = w->line_done[m->line] + 1; i < place; i++)
      if (w->messages[i].line == m->line && !w->messages[i].done) {
        w->disorder++;
        break;
      }
  m->done = true;
  for (int64_t *done = m->line >= 0 ? &w->line_done[m->line] : NULL;
       done != NULL && *done < w->last &&
       (w->messages[*done + 1].line != m->line || w->messages[*done + 1].done);)
    ++*done;
}

static bool is_zombie(world *w, processor *p) {
  char sql[100];
  snprintf(sql, sizeof sql, "SELECT count(*) FROM outbox_claims WHERE processor_id = '%s'", p->id);
  return number(w->db, sql) == 0;
}

/* The publisher's call. What fails keeps its followers back. */
static void call(world *w, processor *p) {
  bool zombie = is_zombie(w, p);
  w->calls++;
  for (size_t i = 0; i < p->count; i++) {
    const outbox_entry *e = outbox_batch(p->store, i);
    int space = *(const char *)e->namespace.data - 'a';
    outbox_verdict *v = &p->verdicts[i];
    int line = w->messages[e->seq].line;
    bool blocked = false;
    for (size_t j = 0; j < i; j++) {
      const outbox_entry *before = outbox_batch(p->store, j);
      blocked |= line >= 0 && w->messages[before->seq].line == line &&
                 p->verdicts[j].outcome != OUTBOX_DELIVERED &&
                 p->verdicts[j].outcome != OUTBOX_BURY;
    }
    *v = (outbox_verdict){.outcome = OUTBOX_AGAIN};
    if (!w->up[space]) {
      if (!p->parked[space]) p->probe_at[space] = w->f->now + roll(w, 200000);
      p->parked[space] = true;
      assert_ok(p->store, outbox_park(p->store, text(NAMES[space])));
    } else if (!blocked) {
      int luck = w->fails ? roll(w, 40) : 39;
      *v = (outbox_verdict){.at = w->f->now + roll(w, 300000), .error = text("no")};
      v->outcome = luck == 0   ? OUTBOX_AGAIN
                   : luck == 1 ? OUTBOX_BURY
                   : luck < 5  ? OUTBOX_RETRY
                   : luck < 7  ? OUTBOX_PUT_OFF
                               : OUTBOX_DELIVERED;
      if (v->outcome == OUTBOX_DELIVERED) deliver(w, e->seq, zombie);
      if (v->outcome == OUTBOX_BURY) w->messages[e->seq].done = true;
    }
  }
  p->called = true;
}

/* No two live claims overlap. */
static void check_claims(world *w) {
  struct {
    char namespaces[32];
    uint64_t classes;
  } claims[32];
  int count = 0;
  sqlite3_stmt *row;
  sqlite3_prepare_v2(w->db,
                     "SELECT namespaces, classes FROM outbox_claims WHERE deadline >= ?1"
                     " AND classes <> 0",
                     -1, &row, NULL);
  sqlite3_bind_int64(row, 1, w->f->now);
  while (sqlite3_step(row) == SQLITE_ROW && count < 32) {
    snprintf(claims[count].namespaces, 32, "%s", sqlite3_column_text(row, 0));
    claims[count].classes = (uint64_t)sqlite3_column_int64(row, 1);
    for (int i = 0; i < count; i++)
      w->overlaps += (claims[i].classes & claims[count].classes) != 0 &&
                     box_overlaps(text(claims[i].namespaces), text(claims[count].namespaces));
    count++;
  }
  sqlite3_finalize(row);
}

/* --- Processors ------------------------------------------------------------------------------ */

static void act(world *w);

/* Runs before each statement of a processor. Between its reading and its lock, others may run. */
static int interrupt(unsigned type, void *context, void *statement, void *sql) {
  (void)type, (void)context, (void)statement;
  world *w = the_world;
  if (!w->nested || w->depth > 1 || strcmp(sql, "BEGIN IMMEDIATE") != 0 || roll(w, 4) > 0) return 0;
  w->depth++;
  for (int n = roll(w, roll(w, 6) == 0 ? 60 : 4); n > 0; n--)
    act(w);
  if (roll(w, 30) == 0) w->f->now += 700000; /* it was stopped just here */
  w->depth--;
  return 0;
}

static void start(world *w, processor *p, int i) {
  outbox_options options = test_options(w->f);
  outbox_bytes names[2] = {text("a"), text("b")};
  outbox_service service = {.ordering = OUTBOX_ORDERING_KEY, .duration = 500000, .except = true};
  int set = w->sets == SAME ? 0 : w->sets == APART ? 1 + i % 2 : i == 3 ? 0 : roll(w, 4);
  options.busy_timeout = 1000;
  *p = (processor){.alive = true, .store = open_store(w->f, &options)};
  snprintf(p->id, sizeof p->id, "p%d-%d", i, w->names++);
  service.processor_id = text(p->id);
  service.namespaces = names;
  service.namespace_count = set == 0 ? 0 : set == 3 ? 2 : 1;
  service.except = set == 0 || set == 2;
  assert_ok(p->store, outbox_serve(p->store, &service));
  sqlite3_trace_v2(outbox_connection(p->store), SQLITE_TRACE_STMT, interrupt, NULL);
}

static void stop(world *w, processor *p) {
  close_store(w->f, p->store);
  p->alive = false;
}

/* What it wants next: any entries, or to probe a namespace that is parked, or a suspect. */
static outbox_want choose(world *w, processor *p, bool quiet) {
  outbox_want want = {.batch_size = 1 + roll(w, 6), .join = roll(w, 2) == 0};
  want.leave = !quiet && roll(w, 60) == 0;
  if (p->suspect_count > 0 && roll(w, 3) == 0) {
    want.where = OUTBOX_PLACE;
    want.place = p->suspects[--p->suspect_count];
    return want;
  }
  for (int i = 0; i < SPACES; i++)
    if (p->parked[i] && p->probe_at[i] <= w->f->now && want.where == OUTBOX_ANYWHERE) {
      want.where = (enum outbox_where)(OUTBOX_OLDEST + roll(w, 3));
      want.namespace = text(NAMES[i]);
      p->probe_at[i] = w->f->now + 10000 + roll(w, 100000);
    }
  return want;
}

/* A namespace of which something got through recovers, sooner or later. */
static int recovered(world *w, processor *p) {
  for (size_t i = 0; i < p->count; i++) {
    int space = *(const char *)outbox_batch(p->store, i)->namespace.data - 'a';
    if (p->parked[space] && p->verdicts[i].outcome == OUTBOX_DELIVERED && roll(w, 2) == 0)
      return space;
  }
  for (int i = 0; i < SPACES; i++)
    if (p->parked[i] && w->up[i] && roll(w, 50) == 0) return i;
  return -1;
}

static bool step(world *w, processor *p, bool quiet) {
  if (p->count > 0 && !p->called) {
    call(w, p);
    return true;
  }
  outbox_want want = choose(w, p, quiet);
  outbox_progress progress;
  int space = recovered(w, p);
  int code = outbox_advance(p->store, p->verdicts, p->count, &want, &progress);
  if (code == OUTBOX_BUSY) return true;
  assert_ok(p->store, code);
  p->called = false;
  p->count = progress.count;
  w->lost += progress.lost;
  if (space >= 0 && !progress.lost) {
    outbox_recover(p->store, text(NAMES[space]));
    p->parked[space] = false;
  }
  for (size_t i = 0; i < 8 && outbox_suspects(p->store, i) != NULL; i++)
    if (p->suspect_count < 8) p->suspects[p->suspect_count++] = outbox_suspects(p->store, i)->place;
  check_claims(w);
  return progress.more || progress.count > 0;
}

/* --- Schedules ------------------------------------------------------------------------------- */

/* Deletes a ready or a delayed entry, as an operator may. */
static void operate(world *w) {
  char sql[160];
  bool delayed = roll(w, 2) == 0;
  sqlite3_stmt *row;
  snprintf(sql, sizeof sql,
           "DELETE FROM outbox_%s WHERE seq = (SELECT seq FROM outbox_%s LIMIT 1"
           " OFFSET %d) RETURNING %s",
           delayed ? "delayed" : "entries", delayed ? "delayed" : "entries", roll(w, 5),
           delayed ? "position" : "seq");
  sqlite3_prepare_v2(w->db, sql, -1, &row, NULL);
  if (sqlite3_step(row) == SQLITE_ROW) w->messages[sqlite3_column_int64(row, 0)].done = true;
  sqlite3_step(row);
  sqlite3_finalize(row);
}

static void act(world *w) {
  w->f->now += roll(w, 8) == 0 ? roll(w, 60000) : roll(w, 2000);
  int what = roll(w, 100), i = roll(w, PROCESSORS);
  processor *p = &w->processors[i];
  if (what < 12) {
    publish_some(w);
  } else if (what < 14) {
    w->up[roll(w, SPACES)] ^= true;
  } else if (what < 15) {
    if (w->operated) operate(w);
  } else if (what < 16) {
    if (p->alive && w->depth == 0) stop(w, p);
  } else if (what < 18) {
    if (!p->alive) start(w, p, i);
  } else if (what < 19) {
    p->stopped = true;
    p->until = w->f->now + roll(w, 1200000);
  } else if (p->alive && !p->busy) {
    if (p->stopped && w->f->now >= p->until) p->stopped = false;
    if (p->stopped) return;
    p->busy = true;
    step(w, p, false);
    p->busy = false;
  }
}

static int64_t count_left(world *w) {
  return number(w->db, "SELECT (SELECT count(*) FROM outbox_entries)"
                       " + (SELECT count(*) FROM outbox_delayed)");
}

/* All is well again: everything is delivered within 30 seconds of the clock. */
static int64_t drain(world *w) {
  int64_t end = w->f->now + 30000000, left;
  w->fails = w->nested = false;
  for (int i = 0; i < SPACES; i++)
    w->up[i] = true;
  for (int i = 0; i < PROCESSORS; i++) {
    w->processors[i].stopped = false;
    if (!w->processors[i].alive) start(w, &w->processors[i], i);
  }
  int turns = 0;
  while ((left = count_left(w)) > 0 && w->f->now < end)
    for (int i = 0; i < PROCESSORS; i++) {
      step(w, &w->processors[i], true);
      w->f->now += ++turns % 50 == 0 ? 100000 : 500;
    }
  return left;
}

static void run_schedule(fixture *f, unsigned seed, enum sets sets, bool operated) {
  world *w = calloc(1, sizeof *w);
  assert_non_null(w);
  *w = (world){.f = f,
               .db = connect_plainly(f),
               .seed = seed,
               .sets = sets,
               .operated = operated,
               .fails = true,
               .nested = true,
               .up = {true, true, true}};
  sqlite3_busy_timeout(w->db, 1000);
  the_world = w;
  execute(w->db, "PRAGMA synchronous = OFF; DELETE FROM outbox_entries; DELETE FROM outbox_delayed;"
                 "DELETE FROM outbox_dead; DELETE FROM outbox_claims;"
                 "UPDATE outbox_schema SET mark = 0");
  for (int i = 0; i < PROCESSORS; i++)
    start(w, &w->processors[i], i);
  for (int n = 0; n < 3000; n++)
    act(w);
  int64_t left = drain(w);
  if (w->disorder + w->overlaps > 0 || left > 0)
    fail_msg("seed %u, sets %d: %d out of order, %d overlaps, %lld left; %d calls, %d duplicates",
             seed, sets, w->disorder, w->overlaps, (long long)left, w->calls, w->duplicates);
  for (int i = 0; i < PROCESSORS; i++)
    if (w->processors[i].alive) stop(w, &w->processors[i]);
  disconnect(f, w->db);
  free(w);
}

static void whatever_the_schedule_the_order_is_kept_and_nothing_is_left(void **state) {
  unsigned seed = random_seed(), rounds = is_long() ? 20 : 1;
  for (unsigned i = 0; i < rounds; i++) {
    run_schedule(*state, seed + i, SAME, false);
    run_schedule(*state, seed + i, SAME, true);
    run_schedule(*state, seed + i, APART, true);
    run_schedule(*state, seed + i, OVERLAPPING, true);
  }
}

int test_lanes(void) {
  const struct CMUnitTest tests[] = {
      TEST(whatever_the_schedule_the_order_is_kept_and_nothing_is_left),
  };
  return cmocka_run_group_tests_name("lanes", tests, NULL, NULL);
}
