/*
** The lane itself: made, freed, and what it has in hand and has left behind.
*/
#include "lane.h"

#include <stdlib.h>
#include <string.h>

#include "../uuid.h"

#define MOST_HOLDERS 100000
#define LOOK 10000 /* rows of a careful reading, at most */

/* --- Entries --------------------------------------------------------------------------------- */

static int compare(const void *a, const void *b) {
  int64_t x = ((const item *)a)->entry.seq, y = ((const item *)b)->entry.seq;
  return (x > y) - (x < y);
}

int lane_read(outbox_store *store, PGresult *result, items *items) {
  const lane *lane = store->lane;
  size_t rows = (size_t)PQntuples(result);
  *items = (struct items){.result = result, .session = store->sessions};
  items->items = malloc((rows + 1) * sizeof *items->items);
  if (items->items == NULL) {
    lane_empty(items);
    return store_fail_nomem(store);
  }
  for (int row = 0; row < (int)rows; row++) {
    if (PQgetisnull(result, row, 0)) continue;
    item *item = &items->items[items->count++];
    reading_entry(result, row, &item->entry);
    item->partition = (int)sql_int(result, row, 11);
    item->delayed = sql_bool(result, row, 12);
    items->number = sql_int(result, row, 13);
    item->tid = sql_int(result, row, 16);
    item->entry.state = item->delayed ? OUTBOX_DELAYED : OUTBOX_READY;
    item->space = box_space(item->entry.namespace);
    item->line = item->entry.key.data != NULL ? box_line(item->space, item->entry.key) : 0;
    if (lane->ordering == OUTBOX_ORDERING_STRICT) item->line = 2; /* all wait in one */
    if (lane->ordering == OUTBOX_ORDERING_NONE) item->line = 0;
  }
  if (items->count > 1) qsort(items->items, items->count, sizeof *items->items, compare);
  return OUTBOX_OK;
}

void lane_empty(items *items) {
  PQclear(items->result);
  free(items->items);
  *items = (struct items){0};
}

bool lane_is_uniform(const items *items) {
  for (size_t i = 0; i < items->count; i++) {
    const outbox_entry *entry = &items->items[i].entry;
    if (entry->attempts > 0 || entry->last_error.data != NULL ||
        items->items[i].space != items->items[0].space)
      return false;
  }
  return true;
}

bool lane_repeats(const items *items) {
  size_t room = 16;
  bool found = false;
  if (items->count < 2) return false;
  while (room < 2 * items->count)
    room *= 2;
  uint64_t *seen = calloc(room, sizeof *seen);
  if (seen == NULL) return true;
  for (size_t i = 0; i < items->count && !found; i++) {
    uint64_t line = items->items[i].line, slot = line >> 1;
    if (line == 0) continue; /* it waits for nobody */
    while (seen[slot & (room - 1)] != 0 && seen[slot & (room - 1)] != line)
      slot++;
    found = seen[slot & (room - 1)] == line;
    seen[slot & (room - 1)] = line;
  }
  free(seen);
  return found;
}

void *lane_reallocate(void *items, uint64_t size) {
  if (size > 0) return realloc(items, size);
  free(items);
  return NULL;
}

/* --- The lane -------------------------------------------------------------------------------- */

/* xorshift64*: to sample heads, nothing more. */
uint64_t lane_random(lane *lane) {
  lane->random ^= lane->random >> 12;
  lane->random ^= lane->random << 25;
  lane->random ^= lane->random >> 27;
  return (lane->random * 0x2545f4914f6cdd1du) >> 16;
}

static void free_lane(lane *lane) {
  lane_empty(&lane->hand);
  while (lane->space_count > 0)
    lane_drop_space(lane, &lane->spaces[lane->space_count - 1]);
  free(lane->spaces);
  lines_clear(&lane->holders);
  array_free(&lane->names);
  PQclear(lane->suspect_rows);
  free(lane);
}

static lane *make_lane(const outbox_service *service, outbox_bytes *names, uint64_t random) {
  size_t id_size = service->processor_id.size, count = service->namespace_count,
         size = box_write(NULL, names, count, service->except);
  lane *lane = calloc(1, sizeof *lane + id_size + size + 1);
  if (lane == NULL) return NULL;
  char *text = (char *)(lane + 1);
  if (id_size > 0) memcpy(text, service->processor_id.data, id_size);
  box_write(text + id_size, names, count, service->except);
  lane->processor_id = (outbox_bytes){text, id_size};
  lane->namespaces = (outbox_bytes){text + id_size, size};
  for (size_t i = 0; i < count; i++)
    array_add_bytes(&lane->names, names[i]);
  lane->except = service->except;
  lane->ordering = service->ordering;
  lane->duration = service->duration;
  lane->look = LOOK;
  lane->cap = INT64_MAX;
  lane->due = true;
  cursor_forget(lane);
  lane->holders.reallocate = lane_reallocate;
  lane->random = random | 1;
  lane_begin_anew(lane, UINT64_MAX);
  return lane;
}

int outbox_serve(outbox_store *store, const outbox_service *service) {
  uint64_t random;
  int code = transaction_ready(store);
  bool busy = store->lane != NULL && (store->lane->lease != 0 || store->lane->hand.count > 0);
  if (code == OUTBOX_OK && busy)
    code = store_fail(store, OUTBOX_MISUSE, "another processor is at work on this store");
  if (code == OUTBOX_OK && !uuid_random(&store->uuid_state, &random, sizeof random))
    code = store_fail(store, OUTBOX_ERROR, "the system has no random numbers");
  if (code != OUTBOX_OK) return code;
  size_t count = service->namespace_count;
  outbox_bytes *names = malloc((count + 1) * sizeof *names);
  if (names == NULL) return store_fail_nomem(store);
  if (count > 0) memcpy(names, service->namespaces, count * sizeof *names);
  lane *lane = make_lane(service, names, random);
  free(names);
  if (lane == NULL) return store_fail_nomem(store);
  if (store->lane != NULL) store->free_lane(store->lane);
  store->lane = lane;
  store->free_lane = free_lane;
  return OUTBOX_OK;
}

/* --- What is left behind --------------------------------------------------------------------- */

void lane_begin_anew(lane *lane, uint64_t partitions) {
  for (int i = 0; i < PARTITIONS; i++) {
    if (!(partitions >> i & 1)) continue;
    lane->low[i] = lane->last[i] = INT64_MIN;
    for (size_t j = 0; j < lane->space_count; j++) {
      lane->spaces[j].met &= ~((uint64_t)1 << i); /* main will come by again */
      lane->spaces[j].at[i] = INT64_MIN;
    }
  }
  lane->due = true;
}

void lane_rewind(lane *lane, int partition, int64_t place) {
  if (place < lane->last[partition]) lane->last[partition] = place;
  if (place < lane->low[partition]) lane->low[partition] = place;
}

void lane_rewind_item(lane *lane, const item *item) {
  space *space = lane_find_space(lane, item->space);
  int64_t before = item->entry.seq - 1;
  if (item->delayed) {
    lane->due = true;
  } else if (space == NULL) {
    lane_rewind(lane, item->partition, before);
  } else {
    lane_leave(space, item->partition, item->entry.seq);
    if (space->joined) lane->lap[item->partition] = lines_lower(lane->lap[item->partition], before);
  }
}

space *lane_find_space(const lane *lane, uint64_t hash) {
  for (size_t i = 0; i < lane->space_count; i++)
    if (lane->spaces[i].hash == hash) return &lane->spaces[i];
  return NULL;
}

space *lane_add_space(lane *lane, outbox_bytes name) {
  uint64_t hash = box_space(name);
  space *it = lane_find_space(lane, hash);
  if (it != NULL) return it;
  space *larger = realloc(lane->spaces, (lane->space_count + 1) * sizeof *larger);
  if (larger == NULL) return NULL;
  lane->spaces = larger;
  it = &larger[lane->space_count];
  *it = (space){.hash = hash, .size = name.size, .name = malloc(name.size + 1)};
  if (it->name == NULL) return NULL;
  if (name.size > 0) memcpy(it->name, name.data, name.size);
  for (int i = 0; i < PARTITIONS; i++)
    it->at[i] = INT64_MIN;
  lane->space_count++;
  return it;
}

void lane_drop_space(lane *lane, space *space) {
  free(space->name);
  if (space->heads != NULL) heads_free(space->heads);
  *space = lane->spaces[--lane->space_count];
}

void lane_free_space(lane *lane, space *space) {
  lane->due = true;
  if (space->parked || space->paused) return;
  if (space->met == 0)
    lane_drop_space(lane, space);
  else
    space->lagging = true;
}

void lane_leave(space *space, int partition, int64_t place) {
  uint64_t bit = (uint64_t)1 << partition;
  if (!(space->met & bit) || place <= space->from[partition]) space->from[partition] = place - 1;
  space->met |= bit;
}

int64_t lane_from(const lane *lane, const space *space, int partition) {
  return space->met >> partition & 1 ? space->from[partition] : lane->last[partition];
}

bool lane_is_waiting(const lane *lane) {
  for (size_t i = 0; i < lane->space_count; i++)
    if (lane->spaces[i].met != 0 || !lane->spaces[i].paused) return true;
  return lane->holders.live > 0 || lane->holders_lost;
}

static uint64_t holder_hash(int64_t place) {
  return (uint64_t)place << 1 | 1;
}

void lane_add_holder(lane *lane, int64_t place, int partition) {
  if (lane->holders.live >= MOST_HOLDERS || !lines_reserve(&lane->holders, 1)) {
    lane->holders_lost = true;
    return;
  }
  line *holder = lines_add(&lane->holders, holder_hash(place), LINE_HELD);
  holder->first = place;
  holder->next = partition;
}

/* Each walk may have passed by what waited for it. */
static void rewind_all(lane *lane, int partition, int64_t place) {
  lane_rewind(lane, partition, place);
  lane->lap[partition] = lines_lower(lane->lap[partition], place);
  for (size_t i = 0; i < lane->space_count; i++)
    if (lane->spaces[i].met >> partition & 1)
      lane->spaces[i].from[partition] = lines_lower(lane->spaces[i].from[partition], place);
}

void lane_drop_holder(lane *lane, int64_t place) {
  line *holder = lines_find(&lane->holders, holder_hash(place));
  if (holder == NULL) return;
  for (int p = 0; p < PARTITIONS; p++)
    if (p == holder->next || lane->ordering == OUTBOX_ORDERING_STRICT) rewind_all(lane, p, place);
  lines_drop(&lane->holders, holder);
  lane->due = true;
}

/* --- For the caller -------------------------------------------------------------------------- */

const outbox_entry *outbox_batch(const outbox_store *store, size_t index) {
  const lane *lane = store->lane;
  return lane != NULL && index < lane->hand.count ? &lane->hand.items[index].entry : NULL;
}

const outbox_suspect *outbox_suspects(const outbox_store *store, size_t index) {
  const lane *lane = store->lane;
  return lane != NULL && index < lane->suspect_count ? &lane->suspects[index] : NULL;
}

int outbox_park(outbox_store *store, outbox_bytes namespace) {
  lane *lane = store->lane;
  if (lane == NULL) return store_fail(store, OUTBOX_MISUSE, "the store serves no processor");
  space *space = lane_add_space(lane, namespace);
  if (space == NULL) return store_fail_nomem(store);
  space->parked = true;
  space->lagging = space->joined = false;
  return OUTBOX_OK;
}

void outbox_recover(outbox_store *store, outbox_bytes namespace) {
  lane *lane = store->lane;
  space *space = lane != NULL ? lane_find_space(lane, box_space(namespace)) : NULL;
  if (space == NULL || !space->parked) return;
  space->parked = false;
  lane_free_space(lane, space);
}

double outbox_share(const outbox_store *store) {
  const lane *lane = store->lane;
  return lane != NULL && lane->lease != 0 ? (double)box_count(lane->mask) / BOX_CLASSES : 0;
}
