/***
Methods of a store by which its messages are steered: subscriptions, by which one goes to several
destinations; and pauses.
@submodule outbox.store
*/
#include "shim.h"

/* --- Subscriptions --------------------------------------------------------------------------- */

typedef int change(outbox_store *store, outbox_bytes namespace, outbox_bytes copy, bool *changed);

static int call(lua_State *L, shim_store *self, change *function) {
  bool changed;
  outbox_bytes namespace = shim_check_bytes(L, 2), copy = shim_check_bytes(L, 3);
  shim_check(L, self, function(self->store, namespace, copy, &changed));
  lua_pushboolean(L, changed);
  return 1;
}

/***
From now on, each message that is published to `namespace` becomes a copy in the namespace `copy`
instead, and in those of its other subscriptions. Each copy is an entry with a fate of its own. Its
`id` is the id of the message, a colon and `copy`; its `source_id` is the id of the message. So it
is for everyone who publishes, also with plain SQL. `publish` returns the id of the message. Copies
are not copied again. `copy` may be `namespace` itself. Whatever was published before stays as it
is. The transaction that is open on the store takes part.

    store:subscribe("orders", "warehouse")
    store:subscribe("orders", "mail")

@function store:subscribe
@tparam string namespace
@tparam string copy
@treturn boolean whether it was not subscribed yet
@raise `busy`, `full`
*/
static int store_subscribe(lua_State *L) {
  shim_store *self = shim_check_store(L, 1);
  return call(L, self, self->engine->subscribe);
}

/***
Ends a subscription. The copies that are there stay.
@function store:unsubscribe
@tparam string namespace
@tparam string copy
@treturn boolean whether there was one
@raise `busy`, `full`
*/
static int store_unsubscribe(lua_State *L) {
  shim_store *self = shim_check_store(L, 1);
  return call(L, self, self->engine->unsubscribe);
}

/***
Lists the subscriptions.
@function store:subscriptions
@treturn {table,...} each with `namespace` and `copy`, in the order of these
*/
static int store_subscriptions(lua_State *L) {
  shim_store *self = shim_check_store(L, 1);
  shim_push_subscriptions(L, self, self->engine->subscriptions(self->store));
  return 1;
}

/* --- Pauses ---------------------------------------------------------------------------------- */

/***
From now on nothing of a namespace is handed out, by any processor or claim by hand: its entries
wait, uncharged, until it is resumed. What is in hand is finished. This is kept in the database.
@function store:pause
@tparam string namespace
@treturn boolean whether it was not paused yet
@raise `busy`, `full`; what the clock raises
*/
static int store_pause(lua_State *L) {
  bool paused;
  shim_store *self = shim_check_store(L, 1);
  outbox_bytes namespace = shim_check_bytes(L, 2);
  shim_read_clock(L, self, 1);
  shim_check_store(L, 1);
  shim_check(L, self, self->engine->pause(self->store, namespace, &paused));
  lua_pushboolean(L, paused);
  return 1;
}

/***
Ends a pause. What waited is handed out again, in order.
@function store:resume
@tparam string namespace
@treturn boolean whether it was paused
@raise `busy`, `full`
*/
static int store_resume(lua_State *L) {
  bool resumed;
  shim_store *self = shim_check_store(L, 1);
  outbox_bytes namespace = shim_check_bytes(L, 2);
  shim_check(L, self, self->engine->resume(self->store, namespace, &resumed));
  lua_pushboolean(L, resumed);
  return 1;
}

/***
Lists the namespaces that are paused.
@function store:paused
@treturn {table,...} each with `namespace` and `paused_at`, seconds since the Unix epoch, in the
order of the names
*/
static int store_paused(lua_State *L) {
  shim_store *self = shim_check_store(L, 1);
  shim_push_paused(L, self, self->engine->paused_namespaces(self->store));
  return 1;
}

/* --- The methods ----------------------------------------------------------------------------- */

static const luaL_Reg METHODS[] = {{"subscribe", store_subscribe},
                                   {"unsubscribe", store_unsubscribe},
                                   {"subscriptions", store_subscriptions},
                                   {"pause", store_pause},
                                   {"resume", store_resume},
                                   {"paused", store_paused},
                                   {NULL, NULL}};

void shim_add_steering(lua_State *L) {
  luaL_setfuncs(L, METHODS, 0);
}
