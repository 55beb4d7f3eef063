#include "lines.h"

#include <string.h>

#define LEAST 64 /* lines; there is room for half as many */

/* Where the line of a hash is, or would be. */
static line *slot(const lines *lines, uint64_t hash) {
  size_t i = (size_t)(hash >> 1);
  while (lines->items[i & (lines->room - 1)].hash != 0 &&
         lines->items[i & (lines->room - 1)].hash != hash)
    i++;
  return &lines->items[i & (lines->room - 1)];
}

static bool is_live(const line *line) {
  return line->hash != 0 && line->state != LINE_GONE;
}

bool lines_reserve(lines *lines, size_t count) {
  if (2 * (lines->used + count) <= lines->room) return true;
  size_t room = LEAST;
  while (room < 4 * (lines->live + count))
    room *= 2;
  line *items = lines->reallocate(NULL, room * sizeof *items), *old = lines->items;
  if (items == NULL) return false;
  memset(items, 0, room * sizeof *items);
  size_t old_room = lines->room;
  lines->items = items;
  lines->room = room;
  lines->used = lines->live;
  for (size_t i = 0; i < old_room; i++)
    if (is_live(&old[i])) *slot(lines, old[i].hash) = old[i];
  lines->reallocate(old, 0);
  return true;
}

line *lines_find(const lines *lines, uint64_t hash) {
  if (lines->used == 0 || hash == 0) return NULL;
  line *line = slot(lines, hash);
  return is_live(line) ? line : NULL;
}

line *lines_add(lines *lines, uint64_t hash, enum line_state state) {
  line *it = slot(lines, hash);
  if (is_live(it)) return it;
  if (it->hash == 0) lines->used++;
  lines->live++;
  *it = (line){.hash = hash, .first = NEVER, .next = NEVER, .head = NEVER, .state = state};
  return it;
}

void lines_drop(lines *lines, line *line) {
  if (line->heads != NULL) lines->free_heads(line->heads);
  line->heads = NULL;
  line->state = LINE_GONE;
  lines->live--;
}

line *lines_next(const lines *lines, line *line) {
  size_t i = line == NULL ? 0 : (size_t)(line - lines->items) + 1;
  while (i < lines->room && !is_live(&lines->items[i]))
    i++;
  return i < lines->room ? &lines->items[i] : NULL;
}

void lines_clear(lines *lines) {
  for (line *it = NULL; (it = lines_next(lines, it)) != NULL;)
    lines_drop(lines, it);
  lines->reallocate(lines->items, 0);
  lines->items = NULL;
  lines->room = lines->used = 0;
}
