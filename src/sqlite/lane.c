/*
** The lane itself: made, freed, and the entries that it has in hand.
*/
#include "lane.h"

#include <string.h>

static void *reallocate(void *items, uint64_t size) {
  return sqlite3_realloc64(items, size);
}

/* --- Entries --------------------------------------------------------------------------------- */

/* Copies bytes to *end, and moves it. */
static outbox_bytes keep(outbox_bytes bytes, char **end) {
  char *copy = *end;
  if (bytes.data == NULL) return bytes;
  if (bytes.size > 0) memcpy(copy, bytes.data, bytes.size);
  *end += bytes.size;
  return (outbox_bytes){copy, bytes.size};
}

int lane_add(outbox_store *store, items *list, sqlite3_stmt *row, bool delayed, uint64_t space,
             uint64_t line) {
  if (list->count == list->room) {
    size_t room = 2 * list->room + 16;
    item *larger = sqlite3_realloc64(list->items, room * sizeof *larger);
    if (larger == NULL) return store_fail_nomem(store);
    list->items = larger;
    list->room = room;
  }
  outbox_bytes id = sql_column(row, 1), namespace = sql_column(row, 2), key = sql_column(row, 3),
               payload = sql_column(row, 4), headers = sql_column(row, 5),
               last_error = sql_column(row, 8);
  size_t size = id.size + namespace.size + key.size + payload.size + headers.size;
  char *end = sqlite3_malloc64(size + last_error.size + 1);
  if (end == NULL) return store_fail_nomem(store);
  item *item = &list->items[list->count++];
  item->bytes = end;
  item->space = space;
  item->line = line;
  item->delayed = delayed;
  item->stays = false;
  item->entry = (outbox_entry){.state = delayed ? OUTBOX_DELAYED : OUTBOX_READY,
                               .seq = sqlite3_column_int64(row, 0),
                               .id = keep(id, &end),
                               .namespace = keep(namespace, &end),
                               .key = keep(key, &end),
                               .payload = keep(payload, &end),
                               .headers = keep(headers, &end),
                               .created_at = sqlite3_column_int64(row, 6),
                               .attempts = sqlite3_column_int64(row, 7),
                               .last_error = keep(last_error, &end)};
  list->bytes += (int64_t)size;
  return OUTBOX_OK;
}

void lane_empty(items *list) {
  for (size_t i = 0; i < list->count; i++)
    sqlite3_free(list->items[i].bytes);
  sqlite3_free(list->items);
  *list = (items){0};
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

void lane_release(lane *lane, line *line) {
  line->blocked = false;
  if (line->first > lane->main) { /* the main walk comes by */
    lines_drop(&lane->lines, line);
    return;
  }
  if (line->heads != NULL) heads_free(line->heads);
  line->heads = NULL;
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
  line->state = LINE_PARKED;
  line->joined = false;
  return OUTBOX_OK;
}

void outbox_recover(outbox_store *store, outbox_bytes namespace) {
  lane *lane = store->lane;
  if (lane == NULL) return;
  line *line = lines_find(&lane->lines, box_space(namespace));
  if (line != NULL && line->state == LINE_PARKED) lane_release(lane, line);
  lane->due_at = lane->due_seq = INT64_MIN;
}
