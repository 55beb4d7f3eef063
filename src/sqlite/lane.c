/*
** The lane itself: made, freed, and the entries that it has in hand.
*/
#include "lane.h"

#include <string.h>

#include "derived.h"

static void *reallocate(void *items, uint64_t size) {
  return sqlite3_realloc64(items, size);
}

/* --- Entries --------------------------------------------------------------------------------- */

/* The bytes of a batch are taken from a few blocks: an allocation for each entry costs more. */
struct block {
  block *before;
  size_t room, used;
  char bytes[];
};

#define BLOCK_SIZE 16000

static char *take_bytes(items *list, size_t size) {
  block *block = list->blocks;
  if (block == NULL || block->room - block->used < size) {
    size_t room = size > BLOCK_SIZE ? size : BLOCK_SIZE;
    block = sqlite3_malloc64(sizeof *block + room);
    if (block == NULL) return NULL;
    *block = (struct block){list->blocks, room, 0};
    list->blocks = block;
  }
  block->used += size;
  return block->bytes + block->used - size;
}

/* Copies bytes to *end, and moves it. */
static outbox_bytes keep(outbox_bytes bytes, char **end) {
  char *copy = *end;
  if (bytes.data == NULL) return bytes;
  if (bytes.size > 0) memcpy(copy, bytes.data, bytes.size);
  *end += bytes.size;
  return (outbox_bytes){copy, bytes.size};
}

int lane_add(outbox_store *store, items *list, sqlite3_stmt *row, const item *known) {
  if (list->count == list->room) {
    size_t room = 2 * list->room + 16;
    item *larger = sqlite3_realloc64(list->items, room * sizeof *larger);
    if (larger == NULL) return store_fail_nomem(store);
    list->items = larger;
    list->room = room;
  }
  char text[OUTBOX_ID_SIZE];
  outbox_bytes namespace = known->entry.namespace, key = known->entry.key,
               id = derived_column(row, text), payload = sql_column(row, 4),
               headers = sql_column(row, 5), last_error = sql_column(row, 8),
               source_id = sql_source(row);
  size_t size = id.size + namespace.size + key.size + payload.size + headers.size;
  char *end = take_bytes(list, size + last_error.size + source_id.size);
  if (end == NULL) return store_fail_nomem(store);
  item *item = &list->items[list->count++];
  item->space = known->space;
  item->line = known->line;
  item->class = known->class;
  item->delayed = known->delayed;
  item->stays = false;
  item->entry = (outbox_entry){.state = known->delayed ? OUTBOX_DELAYED : OUTBOX_READY,
                               .seq = known->entry.seq,
                               .id = keep(id, &end),
                               .namespace = keep(namespace, &end),
                               .key = keep(key, &end),
                               .payload = keep(payload, &end),
                               .headers = keep(headers, &end),
                               .created_at = sqlite3_column_int64(row, 6),
                               .attempts = sqlite3_column_int64(row, 7),
                               .last_error = keep(last_error, &end),
                               .source_id = keep(source_id, &end)};
  list->bytes += (int64_t)size;
  return OUTBOX_OK;
}

void lane_empty(items *list) {
  while (list->blocks != NULL) {
    block *block = list->blocks;
    list->blocks = block->before;
    sqlite3_free(block);
  }
  sqlite3_free(list->items);
  *list = (items){0};
}

bool lane_is_uniform(const items *list) {
  for (size_t i = 0; i < list->count; i++) {
    const outbox_entry *entry = &list->items[i].entry;
    if (entry->attempts > 0 || entry->last_error.data != NULL ||
        list->items[i].space != list->items[0].space)
      return false;
  }
  return true;
}

bool lane_repeats(const items *list) {
  size_t room = 16;
  bool found = false;
  if (list->count < 2) return false;
  while (room < 2 * list->count)
    room *= 2;
  uint64_t *seen = sqlite3_malloc64(room * sizeof *seen);
  if (seen == NULL) return true;
  memset(seen, 0, room * sizeof *seen);
  for (size_t i = 0; i < list->count && !found; i++) {
    uint64_t line = list->items[i].line, slot = line >> 1;
    if (line == 0) continue; /* it waits for nobody */
    while (seen[slot & (room - 1)] != 0 && seen[slot & (room - 1)] != line)
      slot++;
    found = seen[slot & (room - 1)] == line;
    seen[slot & (room - 1)] = line;
  }
  sqlite3_free(seen);
  return found;
}

bool lane_has(const lane *lane, int64_t place) {
  if (place > lane->highest) return false;
  for (size_t i = 0; i < lane->hand.count; i++)
    if (lane->hand.items[i].entry.seq == place) return true;
  return false;
}

bool lane_keeps(const lane *lane, uint64_t line) {
  for (size_t i = 0; i < lane->hand.count && line != 0; i++)
    if (lane->hand.items[i].stays && lane->hand.items[i].line == line) return true;
  return false;
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
  lines_clear(&lane->lines);
  for (size_t i = 0; i < lane->suspect_count; i++)
    sqlite3_free(lane->suspect_bytes[i]);
  sqlite3_free(lane);
}

int outbox_serve(outbox_store *store, const outbox_service *service) {
  int code = transaction_enter(store);
  bool busy = store->lane != NULL && (store->lane->lease != 0 || store->lane->hand.count > 0);
  if (code == OUTBOX_OK && (store->attached || busy))
    code = store_fail(store, OUTBOX_MISUSE,
                      store->attached ? "a processor needs a store of its own"
                                      : "another processor is at work on this store");
  if (code != OUTBOX_OK) return code;
  size_t count = service->namespace_count;
  outbox_bytes *names = sqlite3_malloc64((count + 1) * sizeof *names);
  if (names == NULL) return store_fail_nomem(store);
  if (count > 0) memcpy(names, service->namespaces, count * sizeof *names);
  size_t id_size = service->processor_id.size,
         size = box_write(NULL, names, count, service->except);
  lane *lane = sqlite3_malloc64(sizeof *lane + id_size + size + 1);
  if (lane != NULL) {
    char *text = (char *)(lane + 1);
    memset(lane, 0, sizeof *lane);
    if (id_size > 0) memcpy(text, service->processor_id.data, id_size);
    box_write(text + id_size, names, count, service->except);
    lane->processor_id = (outbox_bytes){text, id_size};
    lane->namespaces = (outbox_bytes){text + id_size, size};
    lane->ordering = service->ordering;
    lane->duration = service->duration;
    lane->lines.reallocate = reallocate;
    lane->lines.free_heads = heads_free;
    lane->lap = NEVER;
    lane->main = lane->due_at = lane->due_seq = lane->highest = INT64_MIN;
    lane->seen.changes = -1;
    lane->paused_at_version = -1;
    lane_begin_sweep(lane, INT64_MIN);
    for (int i = 0; i < BOX_CLASSES; i++)
      lane->floor[i] = INT64_MIN;
    sqlite3_randomness(sizeof lane->random, &lane->random);
    lane->random |= 1;
    if (store->lane != NULL) store->free_lane(store->lane);
    store->lane = lane;
    store->free_lane = free_lane;
  }
  sqlite3_free(names);
  return lane != NULL ? OUTBOX_OK : store_fail_nomem(store);
}

/* --- What is left behind --------------------------------------------------------------------- */

void lane_begin_sweep(lane *lane, int64_t at) {
  lane->sweep++;
  lane->swept_from = lane->swept[lane->sweep % SWEEPS] = at;
}

int64_t lane_swept(const lane *lane, const heads *heads) {
  if (heads->sweep == 0 || lane->sweep - heads->sweep >= SWEEPS) return heads->at;
  int64_t at = lane->swept[heads->sweep % SWEEPS];
  return at > heads->at ? at : heads->at;
}

bool lane_is_paused(const lane *lane, uint64_t space) {
  if (lane->pauses == 0) return false;
  const line *line = lines_find(&lane->lines, space);
  return line != NULL && line->paused;
}

bool lane_is_waiting(const lane *lane) {
  if (lane->pauses == 0) return lane->lines.live > 0;
  for (line *line = NULL; (line = lines_next(&lane->lines, line)) != NULL;)
    if (!line->paused || line->first != NEVER) return true;
  return false;
}

void lane_park(lane *lane, line *line) {
  line->state = LINE_PARKED;
  lane->left_lap |= line->joined;
  line->joined = false;
  line->since = lane->sweep;
}

void lane_release(lane *lane, line *line) {
  line->blocked = false;
  if (line->first > lane->main) { /* the main walk comes by */
    lines_drop(&lane->lines, line);
    return;
  }
  if (line->heads != NULL) { /* it may soon be parked again */
    line->heads->at = lane_swept(lane, line->heads);
    line->heads->sweep = 0;
  }
  line->state = LINE_LAGGING;
  line->joined = lane->lap != NEVER && line->first > lane->lap;
  line->next = line->joined ? NEVER : line->next;
  lane->wants_lap = true;
}

void lane_begin_anew(lane *lane, int64_t from) {
  lines *lines = &lane->lines;
  for (line *line = NULL; (line = lines_next(lines, line)) != NULL;)
    if (line->state != LINE_PARKED && line->first != NEVER)
      from = lines_lower(from, line->first - 1);
  lane->main = lines_lower(lane->main, from);
  lane->lap = NEVER;
  lane->due_at = lane->due_seq = INT64_MIN;
  lane_begin_sweep(lane, lane->main);
  for (line *line = NULL; (line = lines_next(lines, line)) != NULL;) {
    if (line->state != LINE_PARKED) {
      lines_drop(lines, line);
      continue;
    }
    line->joined = false;
    line->next = NEVER;
    if (line->first > lane->main) line->first = NEVER; /* main will come by again */
    if (line->heads != NULL) heads_free(line->heads);
    line->heads = NULL;
    line->since = lane->sweep;
  }
}

/* --- What it has, for the caller ------------------------------------------------------------- */

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
  if (!lines_reserve(&lane->lines, 1)) return store_fail_nomem(store);
  line *line = lines_add(&lane->lines, box_space(namespace), LINE_PARKED);
  lane_park(lane, line);
  line->parked = true;
  return OUTBOX_OK;
}

void outbox_recover(outbox_store *store, outbox_bytes namespace) {
  lane *lane = store->lane;
  if (lane == NULL) return;
  line *line = lines_find(&lane->lines, box_space(namespace));
  if (line != NULL && line->state == LINE_PARKED) {
    line->parked = false;
    if (!line->paused) lane_release(lane, line);
  }
  lane->due_at = lane->due_seq = INT64_MIN;
}
