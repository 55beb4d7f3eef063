/*
** The stable names of the result codes.
*/
#include "outbox.h"

const char *outbox_code_name(int code) {
  switch (code) {
  case OUTBOX_OK: return "ok";
  case OUTBOX_ROW: return "row";
  case OUTBOX_DONE: return "done";
#define CASE(code, name)                                                                           \
  case OUTBOX_##code: return name;
    OUTBOX_CODES(CASE)
#undef CASE
  default: return "error";
  }
}
