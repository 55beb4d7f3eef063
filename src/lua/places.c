/*
** Places: a map from the ids of entries to their places, in the memory of Lua. It is an open hash
** table, made anew when it is full; entries that are forgotten leave their slots behind until then.
**
** It keeps a hash of an id, not the id. Two ids with the same 63 bits would share one place, and
** the core, which compares the id too, would not find the entry of the other: it would be delivered
** once more. The hash begins with an address, so that nobody can choose ids to that end.
*/
#include <stdint.h>
#include <string.h>

#include "shim.h"

#define FEWEST 32               /* slots; a power of two, as any number of slots */
#define NOWHERE (INT64_MIN + 1) /* the place of an entry that is forgotten */

typedef struct slot {
  uint64_t hash; /* 0: never used */
  int64_t seq;
} slot;

struct shim_places {
  slot *slots; /* the user value */
  size_t room; /* how many slots there are, */
  size_t used; /* were used, */
  size_t live; /* and are of an entry that is not forgotten */
};

static uint64_t mix(uint64_t hash, uint64_t word) {
  hash = (hash ^ word) * UINT64_C(0x9E3779B97F4A7C15);
  return hash ^ hash >> 32;
}

/* The last word overlaps the one before it. */
static uint64_t hash_of(const shim_places *self, outbox_bytes id) {
  uint64_t word = 0, hash = (uintptr_t)self ^ id.size;
  if (id.size < sizeof word) {
    memcpy(&word, id.data, id.size);
    return mix(hash, word) | 1;
  }
  const char *from = id.data, *last = from + id.size - sizeof word;
  for (; from < last; from += sizeof word) {
    memcpy(&word, from, sizeof word);
    hash = mix(hash, word);
  }
  memcpy(&word, last, sizeof word);
  return mix(hash, word) | 1;
}

/* The slot with the hash, or the one where it is to be put. */
static slot *find(const shim_places *self, uint64_t hash) {
  for (size_t i = hash;; i++) {
    slot *slot = &self->slots[i & (self->room - 1)];
    if (slot->hash == hash || slot->hash == 0) return slot;
  }
}

static bool is_live(const slot *slot) {
  return slot->hash != 0 && slot->seq != NOWHERE;
}

static void put(shim_places *self, uint64_t hash, int64_t seq) {
  slot *slot = find(self, hash);
  self->used += slot->hash == 0;
  self->live += !is_live(slot);
  slot->hash = hash;
  slot->seq = seq;
}

/* Gives the places at the index slots for as many entries again as they have. */
static void rebuild(lua_State *L, int index, shim_places *self) {
  shim_places old = *self;
  size_t room = FEWEST;
  while (room < 2 * (old.live + 1))
    room *= 2;
  slot *slots = lua_newuserdatauv(L, room * sizeof *slots, 0);
  memset(slots, 0, room * sizeof *slots);
  *self = (shim_places){.slots = slots, .room = room};
  for (size_t i = 0; i < old.room; i++)
    if (is_live(&old.slots[i])) put(self, old.slots[i].hash, old.slots[i].seq);
  lua_setiuservalue(L, index, 1);
}

void shim_push_places(lua_State *L) {
  shim_places *self = lua_newuserdatauv(L, sizeof *self, 1);
  *self = (shim_places){.slots = NULL};
  rebuild(L, lua_gettop(L), self);
}

void shim_note_place(lua_State *L, int index, shim_places *self, outbox_bytes id, int64_t seq) {
  if (4 * (self->used + 1) > 3 * self->room) rebuild(L, index, self);
  put(self, hash_of(self, id), seq);
}

bool shim_find_place(const shim_places *self, outbox_bytes id, int64_t *seq) {
  const slot *slot = find(self, hash_of(self, id));
  if (!is_live(slot)) return false;
  *seq = slot->seq;
  return true;
}

static void forget(shim_places *self, slot *slot) {
  slot->seq = NOWHERE;
  self->live--;
}

void shim_forget_place(shim_places *self, outbox_bytes id) {
  slot *slot = find(self, hash_of(self, id));
  if (is_live(slot)) forget(self, slot);
}

void shim_forget_places(shim_places *self) {
  memset(self->slots, 0, self->room * sizeof *self->slots);
  self->used = self->live = 0;
}

size_t shim_count_places(const shim_places *self) {
  return self->live;
}

void shim_sweep_places(lua_State *L, shim_places *self, const shim_store *store) {
  for (size_t i = 0; i < self->room; i++) {
    bool waits = true;
    if (is_live(&self->slots[i]))
      shim_check(L, store, store->engine->is_waiting(store->store, self->slots[i].seq, &waits));
    if (!waits) forget(self, &self->slots[i]);
  }
}
