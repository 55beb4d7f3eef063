/*
** Random sequences of operations on the core, led beside a model of single rows: an entry is
** nowhere, ready, delayed or dead, and a ready one is claimed by one processor or by none. After
** each step the tables hold what the model does, and no two leases overlap.
**
** One store serves all inputs; each finds its tables as a migration leaves them.
*/
#include <inttypes.h>
#include <sqlite3.h>
#include <stdbool.h>
#include <string.h>

#include "fuzz.h"
#include "outbox.h"

enum { IDS = 40, PROCESSORS = 3, NOBODY = PROCESSORS, DEPTH = 4, MOST = 20, STEPS = 200 };

#define SECOND INT64_C(1000000)
#define NOW (1000 * SECOND)
#define NONE INT64_MAX    /* no place, no time */
#define SKEW (5 * SECOND) /* a claim from further in the future is not believed */

/* --- The model ------------------------------------------------------------------------------- */

enum place { NOWHERE, READY, DELAYED, DEAD };

typedef struct entry {
  enum place place;
  int owner;        /* ready ones: the processor whose claim it is under, perhaps a lapsed one */
  int64_t seq;      /* of a delayed one its order among them */
  int64_t position; /* delayed ones: where to come back to, or NONE */
  int64_t due_at, created_at, attempts;
} entry;

/* Entries by their seq. */
typedef struct seqs {
  size_t count;
  int64_t items[IDS];
} seqs;

typedef struct processor {
  int64_t deadline, claimed_at; /* the same for all of its leases */
  seqs in_hand;                 /* what they name */
} processor;

typedef struct model {
  entry entries[IDS]; /* by id */
  processor processors[PROCESSORS];
  int open; /* who has claimed what is still to come */
  int64_t last_seq, last_delayed;
} model;

/* What the store says of a lease, before a step. */
typedef struct lease {
  int64_t first, last;
  int owner;
} lease;

static outbox_store *store;
static sqlite3_stmt *everything;
static char ids[IDS][4];
static const char *const NAMES[PROCESSORS] = {"one", "two", "three"};

static model models[DEPTH + 1], *m; /* those before each begin, and now */
static int64_t now;
static seqs read_seqs;             /* what the store remembers to have given last */
static outbox_bytes read_ids[IDS]; /* what was given last */
static size_t read_count;
static lease leases[IDS + 1];
static size_t lease_count;

static int depth(void) {
  return (int)(m - models);
}

static outbox_bytes bytes(const char *text) {
  return (outbox_bytes){text, strlen(text)};
}

/* Each id has a namespace and a key of its own; some have no key. */
static outbox_bytes namespace_of(unsigned id) {
  return bytes(id % 2 == 0 ? "" : "other");
}

static const char *key_of(unsigned id) {
  static const char *const KEYS[] = {NULL, "a", "b"};
  return KEYS[id % 3];
}

static bool contains(const seqs *list, int64_t seq) {
  for (size_t i = 0; i < list->count; i++)
    if (list->items[i] == seq) return true;
  return false;
}

static bool has_lapsed(int owner) {
  const processor *p = &m->processors[owner];
  return p->deadline < now || p->claimed_at > now + SKEW;
}

/* The ready entries in the order of seq, or the delayed ones in that in which they fall due. */
static size_t sort(enum place place, unsigned list[IDS]) {
  size_t count = 0;
  for (unsigned id = 0; id < IDS; id++) {
    const entry *e = &m->entries[id];
    if (e->place != place) continue;
    size_t i = count++;
    for (; i > 0; list[i] = list[i - 1], i--) {
      const entry *other = &m->entries[list[i - 1]];
      if (place == DELAYED && other->due_at != e->due_at ? other->due_at < e->due_at
                                                         : other->seq < e->seq)
        break;
    }
    list[i] = id;
  }
  return count;
}

static void add(unsigned id) {
  entry *e = &m->entries[id];
  e->place = READY;
  e->seq = ++m->last_seq;
  e->owner = m->open; /* an exclusive claim also has what is still to come */
}

static void delay(unsigned id, int64_t due_at, int64_t position) {
  entry *e = &m->entries[id];
  e->place = DELAYED;
  e->seq = ++m->last_delayed;
  e->due_at = due_at;
  e->position = position;
}

/* Brings back what is due; *from becomes the first place that one came back to. */
static void restore_due(int64_t *from) {
  unsigned list[IDS];
  size_t count = sort(DELAYED, list);
  for (size_t i = 0; i < count && m->entries[list[i]].due_at <= now; i++) {
    entry *e = &m->entries[list[i]];
    if (e->position == NONE) {
      add(list[i]);
      continue;
    }
    e->place = READY;
    e->seq = e->position;
    e->owner = NOBODY;
    for (size_t j = 0; j < lease_count; j++) /* it is whoever's that has claimed its place by now */
      if (leases[j].first <= e->seq && e->seq <= leases[j].last) e->owner = leases[j].owner;
    if (e->seq < *from) *from = e->seq;
  }
}

/* Whether somebody else keeps an exclusive claim from being made, with a row or one due back. */
static bool is_refused(int owner) {
  if (m->open != NOBODY && m->open != owner && !has_lapsed(m->open)) return true;
  for (unsigned id = 0; id < IDS; id++) {
    const entry *e = &m->entries[id];
    if (e->place == READY && e->owner != NOBODY && e->owner != owner && !has_lapsed(e->owner))
      return true;
    for (size_t i = 0;
         e->place == DELAYED && e->position != NONE && e->due_at <= now && i < lease_count; i++)
      if (leases[i].owner != owner && !has_lapsed(leases[i].owner) &&
          leases[i].first <= e->position && e->position <= leases[i].last)
        return true;
  }
  return false;
}

/* Whoever's delivery was cut off has failed. */
static void charge(int owner) {
  for (unsigned id = 0; id < IDS; id++) {
    entry *e = &m->entries[id];
    if (e->place == READY && e->owner != NOBODY && (e->owner == owner || has_lapsed(e->owner)) &&
        contains(&m->processors[e->owner].in_hand, e->seq))
      e->attempts++;
  }
}

/* Gives the processor every row that nobody has, or that it has itself; returns how many. */
static int take_rows(int owner, int64_t deadline, unsigned limit, bool exclusive) {
  unsigned list[IDS];
  size_t count = sort(READY, list);
  int taken = 0;
  bool takes[IDS] = {false};
  unsigned remaining = limit > 0 ? limit : IDS;
  for (int own = 1; own >= 0; own--)
    for (size_t i = 0; i < count && remaining > 0; i++) {
      const entry *e = &m->entries[list[i]];
      bool free = own ? e->owner == owner
                      : e->owner == NOBODY || (e->owner != owner && has_lapsed(e->owner));
      if (!free) continue;
      takes[list[i]] = true;
      remaining--;
      taken++;
    }
  if (m->open != NOBODY && (m->open == owner || has_lapsed(m->open))) m->open = NOBODY;
  for (size_t i = 0; i < count; i++) {
    entry *e = &m->entries[list[i]];
    if (takes[list[i]])
      e->owner = owner;
    else if (e->owner != NOBODY && (e->owner == owner || has_lapsed(e->owner)))
      e->owner = NOBODY;
  }
  m->processors[owner] = (processor){.deadline = deadline, .claimed_at = now};
  if (exclusive && count > 0) m->open = owner;
  return taken;
}

/* The earlier of two times. */
static int64_t earlier(int64_t a, int64_t b) {
  return a < b ? a : b;
}

static outbox_claimed claim_in_model(int owner, int64_t deadline, unsigned limit, bool exclusive) {
  outbox_claimed expected = {.restored_from = NONE};
  int64_t again_at = NONE;
  expected.refused = exclusive && is_refused(owner);
  bool stands_by = expected.refused && m->open != NOBODY && m->open != owner &&
                   !has_lapsed(m->open); /* then it looks at nothing else */
  for (size_t i = 0; i < lease_count; i++)
    if (leases[i].owner != owner && !has_lapsed(leases[i].owner) &&
        (!stands_by || leases[i].last == INT64_MAX))
      again_at = earlier(again_at, m->processors[leases[i].owner].deadline + 1);
  if (!expected.refused) {
    charge(owner);
    restore_due(&expected.restored_from);
    expected.any = take_rows(owner, deadline, limit, exclusive) > 0;
  }
  for (unsigned id = 0; id < IDS && !stands_by; id++)
    if (m->entries[id].place == DELAYED && m->entries[id].due_at > now)
      again_at = earlier(again_at, m->entries[id].due_at);
  expected.again_at = again_at == NONE ? 0 : again_at;
  return expected;
}

/* --- Callbacks ------------------------------------------------------------------------------- */

static int read_clock(void *context, int64_t *time) {
  (void)context;
  *time = now;
  return 0;
}

/* The first id that is free. */
static int generate_id(void *context, int64_t time, outbox_message *message) {
  (void)time;
  bool *used = context; /* of the messages of this call */
  for (unsigned id = 0; id < IDS; id++)
    if (m->entries[id].place == NOWHERE && !used[id]) {
      used[id] = true;
      message->id = bytes(ids[id]);
      return 0;
    }
  return -1;
}

static bool used_ids[IDS];

/* --- Steps ----------------------------------------------------------------------------------- */

static void expect(const char *what, int code, int expected) {
  if (code != expected)
    fail("code of %s: %s, not %s; %s", what, outbox_code_name(code), outbox_code_name(expected),
         outbox_error_message(store));
}

static void expect_number(const char *what, int64_t given, int64_t expected) {
  if (given != expected) fail("answer of %s: %" PRId64 ", not %" PRId64, what, given, expected);
}

static unsigned id_of(outbox_bytes id) {
  char text[4] = "";
  if (id.data == NULL || id.size >= sizeof text) fail("phantom id of %zu bytes", id.size);
  memcpy(text, id.data, id.size);
  unsigned number = (unsigned)strtoul(text, NULL, 10);
  if (number >= IDS || strcmp(text, ids[number]) != 0) fail("phantom id '%s'", text);
  return number;
}

/* A time around now: most often a little later. */
static int64_t choose_time(input *in) {
  return now + ((int64_t)choose(in, 12) - 2) * SECOND;
}

static size_t choose_ids(input *in, outbox_bytes list[MOST]) {
  size_t count = choose(in, 5);
  for (size_t i = 0; i < count; i++)
    list[i] = bytes(ids[choose(in, IDS)]);
  return count;
}

static void publish(input *in) {
  outbox_message messages[MOST];
  unsigned choice = take(in);
  size_t count = choice % 8 == 7 ? MOST : 1 + choice % 4;
  bool generate = choice & 8, schedule = choice & 16, taken = false;
  bool scoped = count > 1 || depth() == 0;
  memset(used_ids, 0, sizeof used_ids);
  memset(messages, 0, sizeof messages);
  for (size_t i = 0; i < count; i++) {
    if (schedule) messages[i].deliver_at = choose_time(in);
    if (generate || count == MOST) continue;
    messages[i].id = bytes(ids[choose(in, IDS)]);
  }
  int code = outbox_generate_ids(store, messages, count);
  if (code != OUTBOX_OK) { /* there are too few */
    expect("generate_ids", code, OUTBOX_CALLBACK);
    return;
  }
  bool seen[IDS] = {false};
  for (size_t i = 0; i < count; i++) {
    unsigned id = id_of(messages[i].id);
    taken |= seen[id] || m->entries[id].place != NOWHERE;
    seen[id] = true;
    messages[i].namespace = namespace_of(id);
    if (key_of(id) != NULL) messages[i].key = bytes(key_of(id));
    messages[i].payload = messages[i].id;
  }
  expect("publish", outbox_publish(store, messages, count), taken ? OUTBOX_DUPLICATE : OUTBOX_OK);
  if (taken) {
    if (scoped) read_seqs.count = 0; /* what was undone may have been read */
    return;
  }
  for (size_t i = 0; i < count; i++) {
    unsigned id = id_of(messages[i].id);
    m->entries[id] = (entry){.created_at = now};
    if (messages[i].deliver_at > now)
      delay(id, messages[i].deliver_at, NONE);
    else
      add(id);
  }
}

static void claim(input *in) {
  int owner = (int)choose(in, PROCESSORS);
  int64_t deadline = choose_time(in);
  unsigned kind = choose(in, 16), limit = kind > 7 ? kind - 7 : 0;
  bool exclusive = kind == 0 || kind == 1;
  outbox_claimed given, expected = claim_in_model(owner, deadline, limit, exclusive);
  expect("claim",
         outbox_claim_entries(store, bytes(NAMES[owner]), deadline, limit, exclusive, &given),
         OUTBOX_OK);
  expect_number("claim: any", given.any, expected.any);
  expect_number("claim: refused", given.refused, expected.refused);
  expect_number("claim: restored_from", given.restored_from, expected.restored_from);
  expect_number("claim: again_at", given.again_at, expected.again_at);
}

/* Whether an entry waits behind one that is to be retried. */
static bool waits(unsigned id, enum outbox_ordering ordering) {
  for (unsigned other = 0; other < IDS && ordering != OUTBOX_ORDERING_NONE; other++) {
    const entry *e = &m->entries[other];
    if (e->place != DELAYED || e->position == NONE || e->position >= m->entries[id].seq) continue;
    if (ordering == OUTBOX_ORDERING_STRICT) return true;
    if (other % 2 == id % 2 && other % 3 == id % 3 && key_of(id) != NULL) return true;
  }
  return false;
}

static void get(int owner, unsigned size, const outbox_selection *selection) {
  unsigned list[IDS];
  size_t count = sort(READY, list), given = 0;
  int64_t read_to = selection != NULL ? selection->after : 0;
  outbox_entry entry;
  int code = outbox_get_claimed_entries(store, bytes(NAMES[owner]), size, selection);
  expect("get_claimed_entries", code, OUTBOX_OK);
  read_seqs.count = read_count = 0;
  for (size_t i = 0; i < count && given < size; i++) {
    const struct entry *e = &m->entries[list[i]];
    if (e->owner != owner || m->processors[owner].deadline < now) continue;
    if (selection != NULL) {
      if (e->seq <= selection->after) continue;
      bool held = waits(list[i], selection->ordering);
      if (held && selection->ordering == OUTBOX_ORDERING_STRICT) break;
      read_to = e->seq;
      if (held || (selection->except_count > 0 && list[i] % 2 == 1)) continue;
    }
    code = outbox_next(store, &entry);
    if (code != OUTBOX_ROW) fail("lost entry %s: %s", ids[list[i]], outbox_code_name(code));
    if (id_of(entry.id) != list[i]) fail("answer of get: %u, not %u", id_of(entry.id), list[i]);
    expect_number("get: seq", entry.seq, e->seq);
    expect_number("get: attempts", entry.attempts, e->attempts);
    read_seqs.items[read_seqs.count++] = e->seq;
    read_ids[read_count++] = bytes(ids[list[i]]);
    given++;
  }
  code = outbox_next(store, &entry);
  if (code != OUTBOX_DONE) fail("phantom entry: %s", outbox_code_name(code));
  if (selection != NULL) expect_number("read_to", outbox_read_to(store), read_to);
}

static void get_some(input *in) {
  int owner = (int)choose(in, PROCESSORS);
  unsigned size = 1 + choose(in, 10), choice = take(in);
  outbox_bytes except = bytes("other");
  outbox_selection selection = {.ordering = (enum outbox_ordering)(choice % 3),
                                .after = choice & 4 ? (int64_t)choose(in, 32) : INT64_MIN,
                                .except = &except,
                                .except_count = choice & 8 ? 1 : 0};
  get(owner, size, choice < 64 ? NULL : &selection);
  if (choice & 16) return;
  expect("hold_batch", outbox_hold_batch(store, bytes(NAMES[owner])), OUTBOX_OK);
  m->processors[owner].in_hand = read_seqs;
}

static void hold(input *in) {
  int owner = (int)choose(in, PROCESSORS);
  expect("hold_batch", outbox_hold_batch(store, bytes(NAMES[owner])), OUTBOX_OK);
  m->processors[owner].in_hand = read_seqs;
}

static void renew(input *in) {
  int owner = (int)choose(in, PROCESSORS);
  int64_t deadline = choose_time(in);
  bool renewed, expected = false;
  for (size_t i = 0; i < lease_count; i++)
    expected |= leases[i].owner == owner;
  expect("renew", outbox_renew_claim(store, bytes(NAMES[owner]), deadline, &renewed), OUTBOX_OK);
  expect_number("renew", renewed, expected);
  m->processors[owner] = (processor){.deadline = deadline, .claimed_at = now};
}

static void release(input *in) {
  int owner = (int)choose(in, PROCESSORS);
  expect("release", outbox_release_claim(store, bytes(NAMES[owner])), OUTBOX_OK);
  for (unsigned id = 0; id < IDS; id++)
    if (m->entries[id].owner == owner) m->entries[id].owner = NOBODY;
  if (m->open == owner) m->open = NOBODY;
  m->processors[owner] = (processor){0};
}

static void delete_all(const outbox_bytes *list, size_t count) {
  int64_t deleted, expected = 0;
  expect("delete", outbox_delete_entries(store, list, count, &deleted), OUTBOX_OK);
  for (size_t i = 0; i < count; i++) {
    entry *e = &m->entries[id_of(list[i])];
    if (e->place != READY && e->place != DELAYED) continue;
    e->place = NOWHERE;
    expected++;
  }
  expect_number("delete", deleted, expected);
}

static void delete_some(input *in) {
  outbox_bytes list[MOST];
  size_t count = choose_ids(in, list);
  delete_all(list, count);
}

static void delete_batch(input *in) {
  unsigned choice = take(in); /* all, most often, or only the first ones */
  delete_all(read_ids, choice > 200 && read_count > 0 ? choice % read_count : read_count);
}

static void retry(input *in) {
  unsigned id = choose(in, IDS), fails = choose(in, 2);
  entry *e = &m->entries[id];
  int64_t due_at = choose_time(in);
  outbox_bytes error = fails ? bytes("refused") : (outbox_bytes){NULL, 0};
  bool found, expected = e->place == READY || (e->place == DELAYED && !fails);
  expect("retry", outbox_retry_entry(store, bytes(ids[id]), due_at, error, &found), OUTBOX_OK);
  expect_number("retry", found, expected);
  if (!expected) return;
  e->attempts += fails;
  if (e->place == READY)
    delay(id, due_at, e->seq);
  else
    e->due_at = due_at;
}

static void bury(input *in) {
  unsigned id = choose(in, IDS), fails = choose(in, 2);
  entry *e = &m->entries[id];
  outbox_bytes error = fails ? bytes("hopeless") : (outbox_bytes){NULL, 0};
  bool found;
  expect("bury", outbox_bury_entry(store, bytes(ids[id]), error, &found), OUTBOX_OK);
  expect_number("bury", found, e->place == READY);
  if (!found) return;
  e->place = DEAD;
  e->attempts += fails;
}

static void take_out(input *in, bool back) {
  outbox_bytes list[MOST];
  size_t count = choose_ids(in, list);
  int64_t found, expected = 0;
  int code = back ? outbox_requeue_entries(store, list, count, &found)
                  : outbox_purge_entries(store, list, count, &found);
  expect("taking out", code, OUTBOX_OK);
  for (size_t i = 0; i < count; i++) {
    unsigned id = id_of(list[i]);
    if (m->entries[id].place != DEAD) continue;
    expected++;
    m->entries[id].place = NOWHERE;
    m->entries[id].attempts = 0;
    if (back) add(id);
  }
  expect_number("taking out", found, expected);
}

static void requeue(input *in) {
  take_out(in, true);
}

static void purge(input *in) {
  take_out(in, false);
}

static void begin(input *in) {
  (void)in;
  if (depth() == DEPTH) return;
  expect("begin", outbox_begin(store), OUTBOX_OK);
  m[1] = m[0];
  m++;
}

static void commit(input *in) {
  (void)in;
  expect("commit", outbox_commit(store), depth() > 0 ? OUTBOX_OK : OUTBOX_MISUSE);
  if (depth() == 0) return;
  m[-1] = m[0];
  m--;
}

static void roll_back(input *in) {
  (void)in;
  expect("rollback", outbox_rollback(store), OUTBOX_OK);
  if (depth() == 0) return;
  m--;
  read_seqs.count = 0;
}

/* Time passes; now and then the clock is put back, or far forward. */
static void pass(input *in) {
  unsigned choice = take(in);
  now += choice < 224 ? choice % 4 * SECOND : ((int64_t)choice - 240) * SECOND;
}

static void count(input *in) {
  (void)in;
  outbox_counts counts;
  unsigned list[IDS];
  expect("count", outbox_count_entries(store, &counts), OUTBOX_OK);
  size_t ready = sort(READY, list);
  expect_number("ready", counts.ready, (int64_t)ready);
  expect_number("oldest_age", counts.oldest_age,
                ready > 0 ? now - m->entries[list[0]].created_at : 0);
  size_t delayed = sort(DELAYED, list);
  expect_number("delayed", counts.delayed, (int64_t)delayed);
  expect_number("due_at", counts.due_at, delayed > 0 ? m->entries[list[0]].due_at : 0);
  expect_number("dead", counts.dead, (int64_t)sort(DEAD, list));
}

/* --- The comparison -------------------------------------------------------------------------- */

static int owner_of(outbox_bytes name) {
  for (int i = 0; i < PROCESSORS; i++)
    if (name.size == strlen(NAMES[i]) && memcmp(name.data, NAMES[i], name.size) == 0) return i;
  fail("phantom processor of %zu bytes", name.size);
  return NOBODY;
}

static void read_leases(void) {
  outbox_lease l;
  int code;
  lease_count = 0;
  expect("leases", outbox_leases(store), OUTBOX_OK);
  while ((code = outbox_next_lease(store, &l)) == OUTBOX_ROW) {
    if (lease_count == sizeof leases / sizeof *leases) fail("leases: too many");
    if (l.first_seq > l.last_seq) fail("lease turned round");
    if (lease_count > 0 && leases[lease_count - 1].last >= l.first_seq) fail("leases overlap");
    lease *next = &leases[lease_count++];
    *next = (lease){l.first_seq, l.last_seq, owner_of(l.processor_id)};
    expect_number("lease: deadline", l.deadline, m->processors[next->owner].deadline);
    expect_number("lease: claimed_at", l.claimed_at, m->processors[next->owner].claimed_at);
  }
  expect("leases", code, OUTBOX_DONE);
}

static int lease_owner(int64_t seq) {
  for (size_t i = 0; i < lease_count; i++)
    if (leases[i].first <= seq && seq <= leases[i].last) return leases[i].owner;
  return NOBODY;
}

static void compare(void) {
  bool seen[IDS] = {false};
  read_leases();
  while (sqlite3_step(everything) == SQLITE_ROW) {
    unsigned id = id_of((outbox_bytes){sqlite3_column_text(everything, 1),
                                       (size_t)sqlite3_column_bytes(everything, 1)});
    const entry *e = &m->entries[id];
    enum place place = (enum place)sqlite3_column_int(everything, 0);
    int64_t number = sqlite3_column_int64(everything, 2);
    if (seen[id] || e->place == NOWHERE) fail("phantom entry %u", id);
    seen[id] = true;
    expect_number("place", place, e->place);
    expect_number("number", number, place == DELAYED ? e->due_at : e->seq);
    expect_number("attempts", sqlite3_column_int64(everything, 3), e->attempts);
    if (place == READY) expect_number("owner", lease_owner(number), e->owner);
    if (place == DELAYED) {
      bool back = sqlite3_column_type(everything, 4) != SQLITE_NULL;
      expect_number("position", back ? sqlite3_column_int64(everything, 4) : NONE, e->position);
    }
  }
  sqlite3_reset(everything);
  for (unsigned id = 0; id < IDS; id++)
    if (!seen[id] && m->entries[id].place != NOWHERE) fail("lost entry %u", id);
}

/* --- The target ------------------------------------------------------------------------------ */

static const char EVERYTHING[] = "SELECT 1, id, seq, attempts, NULL FROM outbox_entries UNION ALL"
                                 " SELECT 2, id, due_at, attempts, position FROM outbox_delayed"
                                 " UNION ALL SELECT 3, id, seq, attempts, NULL FROM outbox_dead";

static void open_store(void) {
  outbox_options options = OUTBOX_DEFAULTS;
  options.busy_timeout = 0;
  options.clock = read_clock;
  options.id_generator = generate_id;
  options.id_generator_context = used_ids;
  int code = outbox_open(&store, ":memory:", &options);
  if (code == OUTBOX_OK) code = outbox_migrate(store);
  if (code != OUTBOX_OK ||
      sqlite3_prepare_v2(outbox_connection(store), EVERYTHING, -1, &everything, NULL) != SQLITE_OK)
    fail("code of open: %s", outbox_error_message(store));
  for (unsigned id = 0; id < IDS; id++)
    snprintf(ids[id], sizeof ids[id], "%u", id);
}

static void empty(void) {
  static const char DELETE[] =
      "DELETE FROM outbox_entries; DELETE FROM outbox_delayed; DELETE FROM outbox_dead;"
      "DELETE FROM outbox_leases; DELETE FROM sqlite_sequence";
  sqlite3_exec(outbox_connection(store), DELETE, NULL, NULL, NULL);
  m = models;
  memset(m, 0, sizeof *m);
  m->open = NOBODY;
  for (unsigned id = 0; id < IDS; id++)
    m->entries[id].owner = NOBODY;
  now = NOW;
  get(0, 1, NULL); /* so that it remembers no batch */
  lease_count = 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static void (*const OPERATIONS[])(input *) = {
      publish,  publish, publish, claim,       claim,        claim, claim, get_some,
      get_some, hold,    renew,   delete_some, delete_batch, retry, bury,  requeue,
      purge,    release, begin,   commit,      roll_back,    pass,  pass,  count};
  input in = {data, size};
  if (store == NULL) open_store();
  empty();
  for (int step = 0; step < STEPS && in.size > 0; step++) {
    OPERATIONS[choose(&in, sizeof OPERATIONS / sizeof *OPERATIONS)](&in);
    compare();
  }
  count(&in);
  for (int owner = 0; owner < PROCESSORS; owner++)
    get(owner, IDS, NULL);
  while (depth() > 0)
    roll_back(&in);
  compare();
  return 0;
}
