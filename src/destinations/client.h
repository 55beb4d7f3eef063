/*
** What the clients of all brokers share. Each is a userdata with the methods that
** lua/outbox/publishing/broker.lua describes, around a broker's own C client.
*/
#ifndef OUTBOX_DESTINATIONS_CLIENT_H
#define OUTBOX_DESTINATIONS_CLIENT_H

#include <lauxlib.h>
#include <lua.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>

#pragma GCC visibility push(hidden)

/*
** Pushes a module with the function `connect`, whose clients have the methods. `name` is the name
** of their type. A client is closed with its method `close`, also when it is collected.
*/
int client_module(lua_State *L, const char *name, lua_CFunction connect, const luaL_Reg *methods);

/* Pushes a new client of that type, all zero, with a table as its user value. */
void *client_make(lua_State *L, const char *name, size_t size);

/* The text in a field of the table at `index`, or NULL. The table keeps it alive. */
const char *client_option(lua_State *L, int index, const char *name);

/* The number in a field of the table at `index`, or `none`. */
lua_Integer client_number(lua_State *L, int index, const char *name, lua_Integer none);

/* Returns what `connect` and `work` return where there is no connection: nil and the reason. */
int client_lose(lua_State *L, const char *reason);

/* --- Results: the user value of a client ----------------------------------------------------- */

/* Empties the results of the client at `index`, with room for `count`. */
void client_begin(lua_State *L, int index, size_t count);

/*
** Notes that the item, counted from 1, is confirmed; or that it was refused, for the reason on top
** of the stack, which is popped.
*/
void client_confirm(lua_State *L, int index, size_t item);
void client_refuse(lua_State *L, int index, size_t item);

/* The method `results`. */
int client_results(lua_State *L);

/* --- SIGPIPE ---------------------------------------------------------------------------------- */

/* Around calls that may write to a closed connection, which would end the process. */

typedef struct client_guard {
  sigset_t former;
  bool pending;
} client_guard;

void client_guard_begin(client_guard *guard);
void client_guard_end(const client_guard *guard);

#pragma GCC visibility pop

#endif
