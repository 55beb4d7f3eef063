/*
** The module `outbox.core`: the functions and types that are written in C. Applications use those
** that `require("outbox")` gives them. The others serve the modules in Lua.
**
** Besides the functions: `_VERSION`; `LAPSED`, the last_error of an entry that was in hand when its
** processor died, and `OVERTIME`, after its call took too long; and, for the modules in Lua,
** `Error`, the metatable of errors, `CODES`, the array of their codes, `store`, the methods of
** stores, `MESSAGE_COLUMNS` and `HANDSHAKE`, pieces of SQL.
*/
#include "shim.h"

int luaopen_outbox_core(lua_State *L);

int luaopen_outbox_core(lua_State *L) {
  lua_newtable(L);
  lua_pushliteral(L, OUTBOX_VERSION);
  lua_setfield(L, -2, "_VERSION");
  lua_pushliteral(L, OUTBOX_LAPSED);
  lua_setfield(L, -2, "LAPSED");
  lua_pushliteral(L, OUTBOX_OVERTIME);
  lua_setfield(L, -2, "OVERTIME");
  shim_open_check(L);
  shim_open_values(L);
  shim_open_files(L);
  shim_open_poll(L);
  shim_open_process(L);
  shim_open_worker(L);
  shim_open_publish(L);
  shim_open_sql(L);
  shim_open_store(L);
  shim_open_transaction(L);
  shim_open_opening(L);
  return 1;
}
