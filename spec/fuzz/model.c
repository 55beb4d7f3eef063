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

bool model_is_held_back(unsigned id, enum outbox_ordering ordering) {
  for (unsigned other = 0; other < IDS && ordering != OUTBOX_ORDERING_NONE; other++) {
    const entry *e = &current->entries[other];
    if (e->place != DELAYED || e->position == NONE || e->position >= current->entries[id].seq)
      continue;
    if (ordering == OUTBOX_ORDERING_STRICT || have_same_key(id, other)) return true;
  }
  return false;
}

static void add(unsigned id) {
  entry *e = &current->entries[id];
  e->place = READY;
  e->seq = ++current->last_seq;
  e->owner = current->exclusive; /* an exclusive claim covers future entries too */
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
  if (e->place != READY && (e->place != DELAYED || failed)) return false;
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
  if (e->place != READY) return false;
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

int lease_owner(int64_t seq) {
  for (size_t i = 0; i < lease_count; i++)
    if (leases[i].first <= seq && seq <= leases[i].last) return leases[i].owner;
  return NOBODY;
}

static bool has_lapsed(int owner) {
  const processor *p = &current->processors[owner];
  return p->deadline < now || p->claimed_at > now + MAX_SKEW;
}

/* Whether a live claim of another processor than `owner` covers something that `holder` holds. */
static bool is_held_by_another(int holder, int owner) {
  return holder != NOBODY && holder != owner && !has_lapsed(holder);
}

/* Whether a delayed entry is due: its time has come, or it was delayed in the future. */
static bool is_due(const entry *e) {
  return e->due_at <= now || (e->position != NONE && e->delayed_at > now + MAX_SKEW);
}

/* Makes due entries ready again. Lowers *from to the first seq to which an entry returns. */
static void restore_due(int64_t *from) {
  unsigned list[IDS];
  size_t count = model_list(DELAYED, list);
  for (size_t i = 0; i < count; i++) {
    entry *e = &current->entries[list[i]];
    if (!is_due(e)) continue;
    if (e->position == NONE) {
      add(list[i]);
      continue;
    }
    e->place = READY;
    e->seq = e->position;
    e->owner = lease_owner(e->seq); /* the place may have been claimed meanwhile */
    if (e->seq < *from) *from = e->seq;
  }
}

/* Whether an exclusive claim is refused because another processor holds an entry, or holds the
** place to which a due one returns. */
static bool is_refused(int owner) {
  if (is_held_by_another(current->exclusive, owner)) return true;
  for (unsigned id = 0; id < IDS; id++) {
    const entry *e = &current->entries[id];
    if (e->place == READY && is_held_by_another(e->owner, owner)) return true;
    if (e->place == DELAYED && e->position != NONE && is_due(e) &&
        is_held_by_another(lease_owner(e->position), owner))
      return true;
  }
  return false;
}

/* Whether a claim by `owner` takes away what `holder` holds. */
static bool is_replaced(int holder, int owner) {
  return holder != NOBODY && (holder == owner || has_lapsed(holder));
}

static bool contains(const seqs *list, int64_t seq) {
  for (size_t i = 0; i < list->count; i++)
    if (list->items[i] == seq) return true;
  return false;
}

/* Counts a failed attempt for each entry whose delivery was interrupted. */
static void charge(int owner) {
  for (unsigned id = 0; id < IDS; id++) {
    entry *e = &current->entries[id];
    if (e->place == READY && is_replaced(e->owner, owner) &&
        contains(&current->processors[e->owner].in_hand, e->seq))
      e->attempts++;
  }
}

/* Gives the processor up to `limit` entries (0: all) that it holds already or that nobody holds,
** its own ones first. Returns how many. */
static int take_entries(int owner, int64_t deadline, unsigned limit, bool exclusive) {
  unsigned list[IDS];
  size_t count = model_list(READY, list);
  int taken = 0;
  bool takes[IDS] = {false};
  unsigned remaining = limit > 0 ? limit : IDS;
  for (int own = 1; own >= 0; own--)
    for (size_t i = 0; i < count && remaining > 0; i++) {
      const entry *e = &current->entries[list[i]];
      bool free = own ? e->owner == owner
                      : e->owner == NOBODY || (e->owner != owner && has_lapsed(e->owner));
      if (!free) continue;
      takes[list[i]] = true;
      remaining--;
      taken++;
    }
  if (is_replaced(current->exclusive, owner)) current->exclusive = NOBODY;
  for (size_t i = 0; i < count; i++) {
    entry *e = &current->entries[list[i]];
    if (takes[list[i]])
      e->owner = owner;
    else if (is_replaced(e->owner, owner))
      e->owner = NOBODY;
  }
  model_renew(owner, deadline);
  if (exclusive && count > 0) current->exclusive = owner;
  return taken;
}

static int64_t earlier(int64_t a, int64_t b) {
  return a < b ? a : b;
}

outbox_claimed model_claim(int owner, int64_t deadline, unsigned limit, bool exclusive) {
  outbox_claimed claimed = {.restored_from = NONE};
  int64_t again_at = NONE;
  claimed.refused = exclusive && is_refused(owner);
  /* A standby waits for the end of the exclusive claim alone. */
  bool stands_by = claimed.refused && is_held_by_another(current->exclusive, owner);
  for (size_t i = 0; i < lease_count; i++)
    if (is_held_by_another(leases[i].owner, owner) && (!stands_by || leases[i].last == INT64_MAX))
      again_at = earlier(again_at, current->processors[leases[i].owner].deadline + 1);
  if (!claimed.refused) {
    charge(owner);
    restore_due(&claimed.restored_from);
    claimed.any = take_entries(owner, deadline, limit, exclusive) > 0;
  }
  for (unsigned id = 0; id < IDS && !stands_by; id++)
    if (current->entries[id].place == DELAYED && current->entries[id].due_at > now)
      again_at = earlier(again_at, current->entries[id].due_at);
  claimed.again_at = again_at == NONE ? 0 : again_at;
  return claimed;
}

void model_hold(int owner, const seqs *batch) {
  current->processors[owner].in_hand = *batch;
}

void model_renew(int owner, int64_t deadline) {
  current->processors[owner] = (processor){.deadline = deadline, .claimed_at = now};
}

void model_release(int owner) {
  for (unsigned id = 0; id < IDS; id++)
    if (current->entries[id].owner == owner) current->entries[id].owner = NOBODY;
  if (current->exclusive == owner) current->exclusive = NOBODY;
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
  *current = (model){.exclusive = NOBODY};
  for (unsigned id = 0; id < IDS; id++)
    current->entries[id].owner = NOBODY;
  lease_count = 0;
}
