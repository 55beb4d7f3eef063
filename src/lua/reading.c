/*
** Reading: rows of the core become arrays of Lua tables.
*/
#include "shim.h"

static void set_bytes(lua_State *L, const char *field, outbox_bytes bytes) {
  if (bytes.data == NULL) return;
  lua_pushlstring(L, bytes.data, bytes.size);
  lua_setfield(L, -2, field);
}

/* A reading in a protected call. It goes on until `code` is OUTBOX_DONE or an error. */
typedef struct reading {
  const outbox_engine *engine;
  outbox_store *store;
  int code;
  bool listed;         /* each entry comes with its time */
  shim_places *places; /* the map at MEMORY, which gets the place of each entry; NULL: none */
  bool in_hand;        /* they are in hand; the table at MEMORY gets the times of their creation */
  size_t given;
} reading;

/* The names of an entry's fields lie at the bottom of the stack, because that saves time. */
enum {
  MEMORY = 2,
  ENTRY_ID,
  ENTRY_NAMESPACE,
  ENTRY_KEY,
  ENTRY_PAYLOAD,
  ENTRY_HEADERS,
  ENTRY_CREATED_AT,
  ENTRY_ATTEMPTS,
  ENTRY_LAST_ERROR,
  ENTRY_SEQ,
  ENTRY_SOURCE_ID,
  ENTRIES /* the array of entries */
};

static const char *const ENTRY_NAMES[] = {"id",      "namespace",  "key",      "payload",
                                          "headers", "created_at", "attempts", "last_error",
                                          "seq",     "source_id"};

/*
** Room for the fields of most entries: only one with headers and an error has more. One more here
** would double the table.
*/
#define MOST_FIELDS 8

static void set_entry_bytes(lua_State *L, int name, outbox_bytes bytes) {
  if (bytes.data == NULL) return;
  lua_pushvalue(L, name);
  lua_pushlstring(L, bytes.data, bytes.size);
  lua_rawset(L, -3);
}

/* Decodes the headers of the entries, which are JSON. */
static void decode_headers(lua_State *L) {
  for (lua_Integer i = 1; lua_rawgeti(L, ENTRIES, i) != LUA_TNIL; i++) {
    lua_pushvalue(L, ENTRY_HEADERS);
    if (lua_rawget(L, -2) != LUA_TNIL) {
      shim_convert_headers(L, "decode");
      lua_setfield(L, -2, ENTRY_NAMES[ENTRY_HEADERS - ENTRY_ID]);
    }
    lua_settop(L, ENTRIES);
  }
  lua_settop(L, ENTRIES);
}

static int next_entry(reading *reading, outbox_entry *entry) {
  if (!reading->in_hand) return reading->engine->next(reading->store, entry);
  const outbox_entry *next = reading->engine->batch(reading->store, reading->given);
  if (next == NULL) return OUTBOX_DONE;
  reading->given++;
  *entry = *next;
  return OUTBOX_ROW;
}

static int read_entries(lua_State *L) {
  reading *reading = lua_touserdata(L, 1);
  bool headers = false;
  outbox_entry entry;
  for (int name = ENTRY_ID; name < ENTRIES; name++)
    lua_pushstring(L, ENTRY_NAMES[name - ENTRY_ID]);
  lua_newtable(L);
  for (lua_Integer i = 1; (reading->code = next_entry(reading, &entry)) == OUTBOX_ROW; i++) {
    lua_createtable(L, 0, MOST_FIELDS);
    set_entry_bytes(L, ENTRY_ID, entry.id);
    set_entry_bytes(L, ENTRY_NAMESPACE, entry.namespace);
    set_entry_bytes(L, ENTRY_KEY, entry.key);
    set_entry_bytes(L, ENTRY_PAYLOAD, entry.payload);
    set_entry_bytes(L, ENTRY_HEADERS, entry.headers);
    headers |= entry.headers.data != NULL;
    lua_pushvalue(L, ENTRY_CREATED_AT);
    shim_push_seconds(L, entry.created_at);
    if (reading->in_hand) {
      lua_pushvalue(L, -1);
      lua_rawseti(L, MEMORY, i);
    }
    lua_rawset(L, -3);
    lua_pushvalue(L, ENTRY_ATTEMPTS);
    lua_pushinteger(L, entry.attempts);
    lua_rawset(L, -3);
    set_entry_bytes(L, ENTRY_LAST_ERROR, entry.last_error);
    lua_pushvalue(L, ENTRY_SEQ);
    lua_pushinteger(L, entry.seq);
    lua_rawset(L, -3);
    set_entry_bytes(L, ENTRY_SOURCE_ID, entry.source_id);
    if (reading->places != NULL && entry.id.data != NULL)
      shim_note_place(L, MEMORY, reading->places, entry.id, entry.seq);
    if (reading->listed) {
      if (entry.state == OUTBOX_DEAD) shim_set_seconds(L, "died_at", entry.died_at);
      if (entry.state == OUTBOX_DELAYED) shim_set_seconds(L, "due_at", entry.due_at);
    }
    lua_rawseti(L, ENTRIES, i);
  }
  if (headers && reading->code == OUTBOX_DONE) decode_headers(L);
  return 1;
}

/*
** Pushes the array that `read` makes of the reading that the core has started, with `code`. Pops
** the memory, a map, a table or nil, from the top before. The call is protected, because Lua may
** run out of memory. A finalizer that the collector runs meanwhile cannot use the store. If it
** closes the store, that is done afterwards.
*/
static void push_reading(lua_State *L, shim_store *self, int code, lua_CFunction read,
                         struct reading reading) {
  shim_check(L, self, code);
  reading.engine = self->engine;
  reading.store = self->store;
  self->reading = true;
  lua_pushcfunction(L, read);
  lua_insert(L, -2);
  lua_pushlightuserdata(L, &reading);
  lua_insert(L, -2);
  int status = lua_pcall(L, 2, 1, 0);
  self->reading = false;
  if (self->closing) {
    shim_close(self);
    shim_raise(L, "closed", "the store is closed");
  }
  self->engine->finish(self->store);
  if (status != LUA_OK) lua_error(L);
  if (reading.code != OUTBOX_DONE) shim_check(L, self, reading.code);
}

int shim_push_entries(lua_State *L, shim_store *self, int code, bool listed) {
  lua_pushnil(L);
  push_reading(L, self, code, read_entries, (reading){.listed = listed});
  return 1;
}

size_t shim_push_batch(lua_State *L, shim_store *self, int code, int memory) {
  lua_pushvalue(L, memory);
  push_reading(L, self, code, read_entries, (reading){.places = lua_touserdata(L, memory)});
  return lua_rawlen(L, -1);
}

void shim_push_hand(lua_State *L, shim_store *self) {
  push_reading(L, self, OUTBOX_OK, read_entries, (reading){.in_hand = true});
}

static void set_name(lua_State *L, int array, lua_Integer i, outbox_bytes bytes) {
  if (bytes.data == NULL) return;
  lua_pushlstring(L, bytes.data, bytes.size);
  lua_rawseti(L, array, i);
}

static int read_names(lua_State *L) {
  static const char *const NAMES[] = {"ids", "seqs", "keys"};
  enum { RESULT = 3, IDS, SEQS, KEYS };
  reading *reading = lua_touserdata(L, 1);
  outbox_entry entry;
  lua_newtable(L);
  for (int array = IDS; array <= KEYS; array++) {
    lua_newtable(L);
    lua_pushvalue(L, -1);
    lua_setfield(L, RESULT, NAMES[array - IDS]);
  }
  for (lua_Integer i = 1; (reading->code = next_entry(reading, &entry)) == OUTBOX_ROW; i++) {
    set_name(L, IDS, i, entry.id);
    lua_pushinteger(L, entry.seq);
    lua_rawseti(L, SEQS, i);
    set_name(L, KEYS, i, entry.key);
  }
  lua_settop(L, RESULT);
  return 1;
}

void shim_push_names(lua_State *L, shim_store *self) {
  lua_pushnil(L);
  push_reading(L, self, OUTBOX_OK, read_names, (reading){.in_hand = true});
}

/* The same for a reading that needs no memory. */
static void push_rows(lua_State *L, shim_store *self, int code, lua_CFunction read) {
  lua_pushnil(L);
  push_reading(L, self, code, read, (reading){.listed = false});
}

/* Sets the namespaces: an array, or one in `except`; none where it is all. */
static void set_namespaces(lua_State *L, outbox_lease *lease) {
  outbox_bytes name;
  if (lease->except && lease->namespaces.size == 0) return;
  lua_newtable(L);
  for (lua_Integer i = 1; outbox_next_namespace(&lease->namespaces, &name); i++) {
    lua_pushlstring(L, name.data, name.size);
    lua_rawseti(L, -2, i);
  }
  if (lease->except) {
    lua_createtable(L, 0, 1);
    lua_insert(L, -2);
    lua_setfield(L, -2, "except");
  }
  lua_setfield(L, -2, "namespaces");
}

static void set_integer(lua_State *L, const char *field, int64_t integer) {
  lua_pushinteger(L, integer);
  lua_setfield(L, -2, field);
}

static int read_leases(lua_State *L) {
  reading *reading = lua_touserdata(L, 1);
  outbox_lease lease;
  lua_newtable(L);
  for (lua_Integer i = 1;
       (reading->code = reading->engine->next_lease(reading->store, &lease)) == OUTBOX_ROW; i++) {
    int classes = 0;
    for (uint64_t mask = lease.classes; mask != 0; mask &= mask - 1)
      classes++;
    lua_createtable(L, 0, 9);
    set_integer(L, "lease", lease.lease);
    set_bytes(L, "processor_id", lease.processor_id);
    set_namespaces(L, &lease);
    set_integer(L, "classes", classes);
    set_integer(L, "first_seq", lease.first_seq);
    set_integer(L, "last_seq", lease.last_seq);
    shim_set_seconds(L, "deadline", lease.deadline);
    shim_set_seconds(L, "claimed_at", lease.claimed_at);
    set_bytes(L, "held", lease.held);
    lua_rawseti(L, -2, i);
  }
  return 1;
}

void shim_push_leases(lua_State *L, shim_store *self, int code) {
  push_rows(L, self, code, read_leases);
}

static int read_subscriptions(lua_State *L) {
  reading *reading = lua_touserdata(L, 1);
  outbox_subscription subscription;
  lua_newtable(L);
  for (lua_Integer i = 1;
       (reading->code = reading->engine->next_subscription(reading->store, &subscription)) ==
       OUTBOX_ROW;
       i++) {
    lua_createtable(L, 0, 2);
    set_bytes(L, "namespace", subscription.namespace);
    set_bytes(L, "copy", subscription.copy);
    lua_rawseti(L, -2, i);
  }
  return 1;
}

void shim_push_subscriptions(lua_State *L, shim_store *self, int code) {
  push_rows(L, self, code, read_subscriptions);
}

static int read_summaries(lua_State *L) {
  reading *reading = lua_touserdata(L, 1);
  outbox_summary summary;
  lua_newtable(L);
  for (lua_Integer i = 1;
       (reading->code = reading->engine->next_summary(reading->store, &summary)) == OUTBOX_ROW;
       i++) {
    lua_createtable(L, 0, 9);
    set_bytes(L, "namespace", summary.namespace);
    set_integer(L, "ready", summary.ready);
    set_integer(L, "delayed", summary.delayed);
    set_integer(L, "dead", summary.dead);
    if (summary.oldest_age >= 0) shim_set_seconds(L, "oldest_age", summary.oldest_age);
    if (summary.due_at != 0) shim_set_seconds(L, "due_at", summary.due_at);
    if (summary.paused_at != 0) shim_set_seconds(L, "paused_at", summary.paused_at);
    if (summary.down_since != 0) shim_set_seconds(L, "down_since", summary.down_since);
    set_bytes(L, "error", summary.error);
    lua_rawseti(L, -2, i);
  }
  return 1;
}

void shim_push_summaries(lua_State *L, shim_store *self, int code) {
  push_rows(L, self, code, read_summaries);
}

static int read_paused(lua_State *L) {
  reading *reading = lua_touserdata(L, 1);
  outbox_paused paused;
  lua_newtable(L);
  for (lua_Integer i = 1;
       (reading->code = reading->engine->next_paused(reading->store, &paused)) == OUTBOX_ROW; i++) {
    lua_createtable(L, 0, 2);
    set_bytes(L, "namespace", paused.namespace);
    shim_set_seconds(L, "paused_at", paused.paused_at);
    lua_rawseti(L, -2, i);
  }
  return 1;
}

void shim_push_paused(lua_State *L, shim_store *self, int code) {
  push_rows(L, self, code, read_paused);
}
