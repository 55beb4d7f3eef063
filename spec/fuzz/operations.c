/*
** Random sequences of operations on the core. Each step applies one operation to a store and to the
** model of model.h. Then it asserts that the store's tables and leases equal the model, and that no
** two leases overlap.
**
** All inputs share one store. Its tables are empty at the start of each input.
*/
#include <inttypes.h>
#include <sqlite3.h>
#include <string.h>

#include "../support/identity.h"
#include "fuzz.h"
#include "model.h"

enum { MAX_MESSAGES = 20, MAX_STEPS = 200 };

#define NOW (1000 * SECOND) /* the initial time */

static outbox_store *store;
static sqlite3_stmt *everything;
static char ids[IDS][4]; /* the ids of the model as text */
static const char *const NAMES[PROCESSORS] = {"one", "two", "three"};

static seqs batch;                /* the entries that the store remembers to have read last */
static outbox_identity read[IDS]; /* the entries that were read last */
static size_t read_count;
static bool used_ids[IDS]; /* the ids that this call of publish has generated */

static outbox_bytes bytes(const char *text) {
  return (outbox_bytes){text, strlen(text)};
}

/* --- Callbacks ------------------------------------------------------------------------------- */

static int read_clock(void *context, int64_t *time) {
  (void)context;
  *time = now;
  return 0;
}

/* Sets the first free id. Fails if there is none. */
static int generate_id(void *context, int64_t time, outbox_message *message) {
  (void)time;
  bool *used = context;
  for (unsigned id = 0; id < IDS; id++)
    if (current->entries[id].place == NOWHERE && !used[id]) {
      used[id] = true;
      message->id = bytes(ids[id]);
      return 0;
    }
  return -1;
}

/* --- Steps ----------------------------------------------------------------------------------- */

static void expect_code(const char *what, int code, int expected) {
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

/* A time from 2 s before now to 9 s after it. */
static int64_t choose_time(input *in) {
  return now + ((int64_t)choose(in, 12) - 2) * SECOND;
}

static size_t choose_ids(input *in, outbox_bytes list[MAX_MESSAGES]) {
  size_t count = choose(in, 5);
  for (size_t i = 0; i < count; i++)
    list[i] = bytes(ids[choose(in, IDS)]);
  return count;
}

static void publish(input *in) {
  outbox_message messages[MAX_MESSAGES];
  unsigned choice = take(in);
  size_t count = choice % 8 == 7 ? MAX_MESSAGES : 1 + choice % 4;
  bool generate = choice & 8, schedule = choice & 16, taken = false;
  bool scoped = count > 1 || model_depth() == 0; /* by its own transaction or savepoint */
  memset(used_ids, 0, sizeof used_ids);
  memset(messages, 0, sizeof messages);
  for (size_t i = 0; i < count; i++) {
    if (schedule) messages[i].deliver_at = choose_time(in);
    if (generate || count == MAX_MESSAGES) continue;
    messages[i].id = bytes(ids[choose(in, IDS)]);
  }
  int code = outbox_generate_ids(store, messages, count);
  if (code != OUTBOX_OK) { /* too few ids are free */
    expect_code("generate_ids", code, OUTBOX_CALLBACK);
    return;
  }
  bool seen[IDS] = {false};
  for (size_t i = 0; i < count; i++) {
    unsigned id = id_of(messages[i].id);
    taken |= seen[id] || current->entries[id].place != NOWHERE;
    seen[id] = true;
    messages[i].namespace = namespace_of(id);
    if (key_of(id) != NULL) messages[i].key = bytes(key_of(id));
    messages[i].payload = messages[i].id;
  }
  expect_code("publish", outbox_publish(store, messages, count),
              taken ? OUTBOX_DUPLICATE : OUTBOX_OK);
  if (taken) {
    if (scoped) batch.count = 0; /* because undone entries may have been read */
    return;
  }
  for (size_t i = 0; i < count; i++)
    model_publish(id_of(messages[i].id), messages[i].deliver_at);
}

static void claim(input *in) {
  int owner = (int)choose(in, PROCESSORS);
  int64_t deadline = choose_time(in);
  unsigned kind = choose(in, 16), limit = kind > 7 ? kind - 7 : 0;
  outbox_claimed given, expected = model_claim(owner, deadline, limit);
  expect_code("claim", outbox_claim_entries(store, bytes(NAMES[owner]), deadline, limit, &given),
              OUTBOX_OK);
  expect_number("claim: any", given.any, expected.any);
  expect_number("claim: again_at", given.again_at, expected.again_at);
}

static size_t size_of(unsigned id) {
  size_t key = key_of(id) != NULL ? strlen(key_of(id)) : 0;
  return 2 * strlen(ids[id]) + namespace_of(id).size + key; /* the payload is the id */
}

/* Reads up to `size` of the processor's entries and asserts that the store returns the same ones as
** the model. */
static void get(int owner, unsigned size, size_t max_bytes) {
  unsigned list[IDS];
  size_t count = model_list_readable(list), total = 0;
  outbox_entry entry;
  int code = outbox_get_claimed_entries(store, bytes(NAMES[owner]), size, (int64_t)max_bytes);
  expect_code("get_claimed_entries", code, OUTBOX_OK);
  batch.count = read_count = 0;
  for (size_t i = 0; i < count && read_count < size; i++) {
    const struct entry *e = &current->entries[list[i]];
    int64_t place = place_of(list[i]);
    if (e->owner != owner || current->processors[owner].deadline < now) continue;
    if (model_is_held_back(list[i], lease_at(place)->first)) continue;
    total += size_of(list[i]);
    if (max_bytes > 0 && total > max_bytes && read_count > 0) break;
    code = outbox_next(store, &entry);
    if (code != OUTBOX_ROW) fail("lost entry %s: %s", ids[list[i]], outbox_code_name(code));
    if (id_of(entry.id) != list[i]) fail("answer of get: %u, not %u", id_of(entry.id), list[i]);
    expect_number("get: seq", entry.seq, place);
    expect_number("get: state", entry.state, e->place == READY ? OUTBOX_READY : OUTBOX_DELAYED);
    expect_number("get: attempts", entry.attempts, e->attempts);
    batch.items[batch.count++] = place;
    read[read_count++] = (outbox_identity){bytes(ids[list[i]]), place};
  }
  code = outbox_next(store, &entry);
  if (code != OUTBOX_DONE) fail("phantom entry: %s", outbox_code_name(code));
}

static void get_some(input *in) {
  int owner = (int)choose(in, PROCESSORS);
  unsigned size = 1 + choose(in, 10), choice = take(in);
  get(owner, size, choice < 64 ? 0 : choice % 16 + 1);
  if (choice & 16) return;
  expect_code("hold_batch", outbox_hold_batch(store, bytes(NAMES[owner])), OUTBOX_OK);
  model_hold(owner, &batch);
}

static void hold(input *in) {
  int owner = (int)choose(in, PROCESSORS);
  expect_code("hold_batch", outbox_hold_batch(store, bytes(NAMES[owner])), OUTBOX_OK);
  model_hold(owner, &batch);
}

/* As the heartbeat does when it gives up. */
static void exceed(input *in) {
  int owner = (int)choose(in, PROCESSORS);
  char sql[120];
  snprintf(sql, sizeof sql,
           "UPDATE outbox_claims SET held = '!' || held WHERE processor_id = '%s'"
           " AND held NOT LIKE '!%%'",
           NAMES[owner]);
  sqlite3_exec(outbox_connection(store), sql, NULL, NULL, NULL);
  model_exceed(owner);
}

static void renew(input *in) {
  int owner = (int)choose(in, PROCESSORS);
  int64_t deadline = choose_time(in);
  bool renewed, expected = has_leases(owner);
  expect_code("renew", outbox_renew_claim(store, bytes(NAMES[owner]), deadline, &renewed),
              OUTBOX_OK);
  expect_number("renew", renewed, expected);
  model_renew(owner, deadline);
}

static void release(input *in) {
  int owner = (int)choose(in, PROCESSORS);
  expect_code("release", outbox_release_claim(store, bytes(NAMES[owner])), OUTBOX_OK);
  model_release(owner);
}

static void delete_all(const outbox_bytes *list, size_t count) {
  int64_t deleted, expected = 0;
  expect_code("delete", delete_any(store, list, count, &deleted), OUTBOX_OK);
  for (size_t i = 0; i < count; i++)
    expected += model_delete(id_of(list[i]));
  expect_number("delete", deleted, expected);
}

static void delete_some(input *in) {
  outbox_bytes list[MAX_MESSAGES];
  size_t count = choose_ids(in, list);
  delete_all(list, count);
}

static void delete_batch(input *in) {
  unsigned choice = take(in); /* up to 200: the whole batch; above: only the first part of it */
  size_t count = choice > 200 && read_count > 0 ? choice % read_count : read_count;
  int64_t deleted, expected = 0;
  expect_code("delete", outbox_delete_entries(store, read, count, &deleted), OUTBOX_OK);
  for (size_t i = 0; i < count; i++)
    expected += model_delete_at(id_of(read[i].id), read[i].seq);
  expect_number("delete", deleted, expected);
}

static void retry(input *in) {
  unsigned id = choose(in, IDS), fails = choose(in, 2);
  int64_t due_at = choose_time(in);
  outbox_bytes error = fails ? bytes("refused") : (outbox_bytes){NULL, 0};
  bool found;
  expect_code("retry", outbox_retry_entry(store, any(bytes(ids[id])), due_at, error, &found),
              OUTBOX_OK);
  expect_number("retry", found, model_retry(id, due_at, fails));
}

static void bury(input *in) {
  unsigned id = choose(in, IDS), fails = choose(in, 2);
  outbox_bytes error = fails ? bytes("hopeless") : (outbox_bytes){NULL, 0};
  bool found;
  expect_code("bury", outbox_bury_entry(store, any(bytes(ids[id])), error, &found), OUTBOX_OK);
  expect_number("bury", found, model_bury(id, fails));
}

/* Requeues or purges dead letters. */
static void take_out(input *in, bool requeues) {
  outbox_bytes list[MAX_MESSAGES];
  size_t count = choose_ids(in, list);
  int64_t found, expected = 0;
  int code = requeues ? outbox_requeue_entries(store, list, count, &found)
                      : outbox_purge_entries(store, list, count, &found);
  expect_code("taking out", code, OUTBOX_OK);
  for (size_t i = 0; i < count; i++)
    expected += requeues ? model_requeue(id_of(list[i])) : model_purge(id_of(list[i]));
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
  if (model_depth() == MAX_DEPTH) return;
  expect_code("begin", outbox_begin(store), OUTBOX_OK);
  model_begin();
}

static void commit(input *in) {
  (void)in;
  expect_code("commit", outbox_commit(store), model_depth() > 0 ? OUTBOX_OK : OUTBOX_MISUSE);
  if (model_depth() > 0) model_commit();
}

static void roll_back(input *in) {
  (void)in;
  expect_code("rollback", outbox_rollback(store), OUTBOX_OK);
  if (model_depth() == 0) return;
  model_roll_back();
  batch.count = 0;
}

/* Lets up to 3 s pass. One choice in eight sets the clock back by up to 16 s or forward by up to
** 15 s. */
static void pass(input *in) {
  unsigned choice = take(in);
  now += choice < 224 ? choice % 4 * SECOND : ((int64_t)choice - 240) * SECOND;
}

static void count(input *in) {
  (void)in;
  outbox_counts counts;
  unsigned list[IDS];
  expect_code("count", outbox_count_entries(store, &counts), OUTBOX_OK);
  size_t ready = model_list(READY, list);
  expect_number("ready", counts.ready, (int64_t)ready);
  int64_t age = ready > 0 ? now - current->entries[list[0]].created_at : -1;
  expect_number("oldest_age", counts.oldest_age, ready > 0 && age < 0 ? 0 : age);
  size_t delayed = model_list(DELAYED, list);
  expect_number("delayed", counts.delayed, (int64_t)delayed);
  expect_number("due_at", counts.due_at, delayed > 0 ? current->entries[list[0]].due_at : 0);
  expect_number("dead", counts.dead, (int64_t)model_list(DEAD, list));
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
  expect_code("leases", outbox_leases(store), OUTBOX_OK);
  while ((code = outbox_next_lease(store, &l)) == OUTBOX_ROW) {
    if (lease_count == sizeof leases / sizeof *leases) fail("leases: too many");
    if (l.first_seq > l.last_seq) fail("lease: ends before it begins");
    if (lease_count > 0 && leases[lease_count - 1].last >= l.first_seq) fail("leases overlap");
    lease *next = &leases[lease_count++];
    *next = (lease){l.first_seq, l.last_seq, owner_of(l.processor_id)};
    expect_number("lease: deadline", l.deadline, current->processors[next->owner].deadline);
    expect_number("lease: claimed_at", l.claimed_at, current->processors[next->owner].claimed_at);
  }
  expect_code("leases", code, OUTBOX_DONE);
}

/* Asserts that the store equals the model. */
static void compare(void) {
  bool seen[IDS] = {false};
  read_leases();
  while (sqlite3_step(everything) == SQLITE_ROW) {
    unsigned id = id_of((outbox_bytes){sqlite3_column_text(everything, 1),
                                       (size_t)sqlite3_column_bytes(everything, 1)});
    const entry *e = &current->entries[id];
    enum place place = (enum place)sqlite3_column_int(everything, 0);
    int64_t number = sqlite3_column_int64(everything, 2);
    if (seen[id] || e->place == NOWHERE) fail("phantom entry %u", id);
    seen[id] = true;
    expect_number("place", place, e->place);
    expect_number("number", number, place == DELAYED ? e->due_at : e->seq);
    expect_number("attempts", sqlite3_column_int64(everything, 3), e->attempts);
    if (place_of(id) != NONE) expect_number("owner", lease_owner(place_of(id)), e->owner);
    if (place == DELAYED) {
      bool returns = sqlite3_column_type(everything, 4) != SQLITE_NULL;
      expect_number("position", returns ? sqlite3_column_int64(everything, 4) : NONE, e->position);
    }
  }
  sqlite3_reset(everything);
  for (unsigned id = 0; id < IDS; id++)
    if (!seen[id] && current->entries[id].place != NOWHERE) fail("lost entry %u", id);
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

static void reset(void) {
  static const char DELETE[] =
      "DELETE FROM outbox_entries; DELETE FROM outbox_delayed; DELETE FROM outbox_dead;"
      "DELETE FROM outbox_claims; UPDATE outbox_schema SET mark = 0";
  sqlite3_exec(outbox_connection(store), DELETE, NULL, NULL, NULL);
  model_reset();
  now = NOW;
  get(0, 1, 0); /* so that the store remembers no batch */
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static void (*const OPERATIONS[])(input *) = {
      publish, publish, publish, claim,       claim,        claim, claim, get_some, get_some,
      hold,    exceed,  renew,   delete_some, delete_batch, retry, bury,  requeue,  purge,
      release, begin,   commit,  roll_back,   pass,         pass,  count};
  input in = {data, size};
  if (store == NULL) open_store();
  reset();
  for (int step = 0; step < MAX_STEPS && in.size > 0; step++) {
    OPERATIONS[choose(&in, sizeof OPERATIONS / sizeof *OPERATIONS)](&in);
    compare();
  }
  count(&in);
  for (int owner = 0; owner < PROCESSORS; owner++)
    get(owner, IDS, 0);
  while (model_depth() > 0)
    roll_back(&in);
  compare();
  return 0;
}
