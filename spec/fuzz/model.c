#include "model.h"

#include <string.h>

#define MAX_SKEW (5 * SECOND) /* a claim made further in the future counts as lapsed */

static model models[MAX_DEPTH + 1]; /* the states before each open begin, and the current one */

model *current = models;
int64_t now;
lease leases[IDS + 1];
size_t lease_count;

/* --- Entries --------------------------------------------------------------------------------- */

outbox_bytes namespace_of(unsigned id) {
  const char *namespace = id % 2 == 0 ? "" : "other";
  return (outbox_bytes){namespace, strlen(namespace)};
}

const char *key_of(unsigned id) {
  static const char *const KEYS[] = {NULL, "a", "b"};
  return KEYS[id % 3];
}

static bool have_same_key(unsigned a, unsigned b) {
  return key_of(a) != NULL && a % 2 == b % 2 && a % 3 == b % 3;
}

size_t model_list(enum place place, unsigned list[IDS]) {
  size_t count = 0;
  for (unsigned id = 0; id < IDS; id++) {
    const entry *e = &current->entries[id];
    if (e->place != place) continue;
    size_t i = count++;
    for (; i > 0; list[i] = list[i - 1], i--) {
      const entry *other = &current->entries[list[i - 1]];
      if (place == DELAYED && other->due_at != e->due_at ? other->due_at < e->due_at
                                                         : other->seq < e->seq)
        break;
    }
    list[i] = id;
  }
  return count;
}

int64_t place_of(unsigned id) {
  const entry *e = &current->entries[id];
  return e->place == READY ? e->seq : e->place == DELAYED ? e->position : NONE;
}

static bool is_readable(unsigned id) {
  const entry *e = &current->entries[id];
  return e->place == READY || (e->place == DELAYED && e->position != NONE && e->due_at <= now);
}

size_t model_list_readable(unsigned list[IDS]) {
  size_t count = 0;
  for (unsigned id = 0; id < IDS; id++) {
    if (!is_readable(id)) continue;
    size_t i = count++;
    for (; i > 0 && place_of(list[i - 1]) > place_of(id); i--)
      list[i] = list[i - 1];
    list[i] = id;
  }
  return count;
}

bool model_is_held_back(unsigned id, int64_t first) {
  for (unsigned other = 0; other < IDS; other++) {
    const entry *e = &current->entries[other];
    if (e->place != DELAYED || e->position == NONE || e->position >= place_of(id)) continue;
    bool comes_first = e->due_at <= now && e->position >= first;
    if (have_same_key(id, other) && !comes_first) return true;
  }
  return false;
}

static void add(unsigned id) {
  entry *e = &current->entries[id];
  e->place = READY;
  e->seq = ++current->last_seq;
  e->owner = NOBODY;
}

static void delay(unsigned id, int64_t due_at, int64_t position) {
  entry *e = &current->entries[id];
  e->place = DELAYED;
  e->seq = ++current->last_delayed;
  e->due_at = due_at;
  e->position = position;
  e->delayed_at = now;
}

void model_publish(unsigned id, int64_t deliver_at) {
  current->entries[id] = (entry){.created_at = now};
  if (deliver_at > now)
    delay(id, deliver_at, NONE);
  else
    add(id);
}

bool model_delete(unsigned id) {
  entry *e = &current->entries[id];
  if (e->place != READY && e->place != DELAYED) return false;
  e->place = NOWHERE;
  return true;
}

bool model_delete_at(unsigned id, int64_t seq) {
  const entry *e = &current->entries[id];
  bool same = e->place == READY ? e->seq == seq : e->place == DELAYED && e->position == seq;
  return same && model_delete(id);
}

bool model_retry(unsigned id, int64_t due_at, bool failed) {
  entry *e = &current->entries[id];
  if (e->place != READY && e->place != DELAYED) return false;
  e->attempts += failed;
  if (e->place == READY)
    delay(id, due_at, e->seq);
  else
    e->due_at = due_at;
  e->delayed_at = now;
  return true;
}

bool model_bury(unsigned id, bool failed) {
  entry *e = &current->entries[id];
  if (e->place != READY && e->place != DELAYED) return false;
  if (e->place == DELAYED) e->seq = e->position != NONE ? e->position : ++current->last_seq;
  e->place = DEAD;
  e->attempts += failed;
  return true;
}

bool model_purge(unsigned id) {
  entry *e = &current->entries[id];
  if (e->place != DEAD) return false;
  e->place = NOWHERE;
  e->attempts = 0;
  return true;
}

bool model_requeue(unsigned id) {
  if (!model_purge(id)) return false;
  add(id);
  return true;
}

/* --- Claims ---------------------------------------------------------------------------------- */

const lease *lease_at(int64_t place) {
  for (size_t i = 0; i < lease_count; i++)
    if (leases[i].first <= place && place <= leases[i].last) return &leases[i];
  return NULL;
}

int lease_owner(int64_t place) {
  const lease *lease = lease_at(place);
  return lease != NULL ? lease->owner : NOBODY;
}

bool has_leases(int owner) {
  for (size_t i = 0; i < lease_count; i++)
    if (leases[i].owner == owner) return true;
  return false;
}

static bool has_lapsed(int owner) {
  const processor *p = &current->processors[owner];
  return p->deadline < now || p->claimed_at > now + MAX_SKEW;
}

static bool contains(const seqs *list, int64_t seq) {
  for (size_t i = 0; i < list->count; i++)
    if (list->items[i] == seq) return true;
  return false;
}

/* Counts a failed attempt for each entry whose delivery was interrupted, or suspects it. */
static void charge(int owner) {
  unsigned list[IDS];
  size_t count = model_list_readable(list); /* what is not due was settled before */
  processor *p = &current->processors[owner];
  for (size_t i = 0; i < count; i++) {
    entry *e = &current->entries[list[i]];
    if (!contains(&p->in_hand, place_of(list[i]))) continue;
    if (!p->overtime)
      e->attempts++;
    else if (e->place == READY)
      delay(list[i], now, e->seq);
    else
      e->due_at = now;
  }
  p->in_hand.count = 0;
  p->overtime = false;
}

/* Nobody owns what a processor has claimed any more. */
static void give_back(int owner) {
  for (unsigned id = 0; id < IDS; id++)
    if (current->entries[id].owner == owner) current->entries[id].owner = NOBODY;
}

/* Makes scheduled entries ready that are due; retries that were delayed in the future are due. */
static void fall_due(void) {
  unsigned list[IDS];
  size_t count = model_list(DELAYED, list);
  for (size_t i = 0; i < count; i++) {
    entry *e = &current->entries[list[i]];
    if (e->position == NONE && e->due_at <= now) add(list[i]);
    if (e->place != DELAYED || e->position == NONE || e->delayed_at <= now + MAX_SKEW) continue;
    if (e->due_at > now) e->due_at = now;
    e->delayed_at = now;
  }
}

/* A claim in the making. */
typedef struct claim {
  int owner;
  bool limited, any;
  unsigned remaining;
} claim;

/* Takes the entries of an interval: all if any can be read or, with a limit, up to the last that it
** allows. Returns the place of the last, or NONE: there is nothing. */
static int64_t take_interval(claim *c, int64_t first, int64_t last) {
  unsigned list[IDS];
  size_t count = model_list_readable(list), taken = 0;
  int64_t end = last;
  for (size_t i = 0; i < count && taken < c->remaining; i++) {
    int64_t place = place_of(list[i]);
    if (place < first || place > last) continue;
    taken++;
    if (c->limited) end = place;
  }
  if (taken == 0) return NONE;
  for (unsigned id = 0; id < IDS; id++)
    if (place_of(id) != NONE && place_of(id) >= first && place_of(id) <= end)
      current->entries[id].owner = c->owner;
  if (c->limited) c->remaining -= (unsigned)taken;
  c->any = true;
  return end;
}

/* Whether the processor can read any of what it has. */
static bool can_read(int owner) {
  unsigned list[IDS];
  size_t count = model_list_readable(list);
  for (size_t i = 0; i < count; i++) {
    if (current->entries[list[i]].owner != owner) continue;
    if (!model_is_held_back(list[i], lease_at(place_of(list[i]))->first)) return true;
  }
  return false;
}

/* With a limit, the processor's own intervals come first, unless none of it can be read. `kept` are
** the intervals between which there are gaps. Returns how many. */
static size_t keep(claim *c, lease kept[IDS + 1]) {
  unsigned limit = c->remaining;
  size_t count = 0;
  for (size_t i = 0; i < lease_count; i++) {
    lease lease = leases[i];
    if (lease.owner == c->owner && c->limited)
      lease.last = take_interval(c, lease.first, lease.last);
    bool keeps =
        lease.owner == c->owner ? c->limited && lease.last != NONE : !has_lapsed(lease.owner);
    if (keeps) kept[count++] = lease;
  }
  if (!c->limited || c->remaining > 0 || can_read(c->owner)) return count;
  give_back(c->owner);
  c->remaining = limit;
  c->any = false;
  size_t others = 0;
  for (size_t i = 0; i < count; i++)
    if (kept[i].owner != c->owner) kept[others++] = kept[i];
  return others;
}

static void claim_gaps(claim *c) {
  lease kept[IDS + 1];
  int64_t from = INT64_MIN;
  size_t count = keep(c, kept);
  for (size_t i = 0; i < count; i++) {
    if (from < kept[i].first) take_interval(c, from, kept[i].first - 1);
    from = kept[i].last + 1;
  }
  take_interval(c, from, INT64_MAX - 1);
}

static int64_t earlier(int64_t a, int64_t b) {
  return a < b ? a : b;
}

/* Whether there is anything for a claim to do. */
static bool is_idle(int owner, bool *work) {
  bool tidy = has_leases(owner), ahead = false;
  *work = false;
  for (size_t i = 0; i < lease_count; i++)
    tidy |= has_lapsed(leases[i].owner);
  for (unsigned id = 0; id < IDS; id++) {
    const entry *e = &current->entries[id];
    *work |= e->place == READY || (e->place == DELAYED && e->due_at <= now);
    ahead |= e->place == DELAYED && e->position != NONE && e->delayed_at > now + MAX_SKEW;
  }
  return !tidy && !*work && !ahead;
}

outbox_claimed model_claim(int owner, int64_t deadline, unsigned limit) {
  claim c = {owner, limit > 0, false, limit > 0 ? limit : IDS};
  int64_t again_at = NONE;
  bool work, charged[PROCESSORS] = {false};
  bool idle = is_idle(owner, &work);
  for (size_t i = 0; i < lease_count && !idle; i++) {
    int other = leases[i].owner;
    if (other != owner && !has_lapsed(other))
      again_at = earlier(again_at, current->processors[other].deadline + 1);
    else if (!charged[other])
      charge(other), give_back(other), charged[other] = true;
  }
  for (unsigned id = 0; id < IDS; id++)
    if (current->entries[id].place == DELAYED && current->entries[id].due_at > now)
      again_at = earlier(again_at, current->entries[id].due_at);
  if (!idle) {
    fall_due();
    claim_gaps(&c);
    model_renew(owner, deadline);
  }
  return (outbox_claimed){.any = c.any, .again_at = again_at == NONE ? 0 : again_at};
}

void model_hold(int owner, const seqs *batch) {
  if (!has_leases(owner)) return;
  current->processors[owner].in_hand = *batch;
  current->processors[owner].overtime = false;
}

void model_exceed(int owner) {
  current->processors[owner].overtime = current->processors[owner].in_hand.count > 0;
}

void model_renew(int owner, int64_t deadline) {
  current->processors[owner] = (processor){.deadline = deadline, .claimed_at = now};
}

void model_release(int owner) {
  give_back(owner);
  current->processors[owner] = (processor){0};
}

/* --- Transactions ---------------------------------------------------------------------------- */

int model_depth(void) {
  return (int)(current - models);
}

void model_begin(void) {
  current[1] = current[0];
  current++;
}

void model_commit(void) {
  current[-1] = current[0];
  current--;
}

void model_roll_back(void) {
  current--;
}

void model_reset(void) {
  current = models;
  memset(current, 0, sizeof *current);
  for (unsigned id = 0; id < IDS; id++)
    current->entries[id].owner = NOBODY;
  lease_count = 0;
}
