/*
** What the shim knows of this engine.
*/
#include "../engine.h"

const outbox_engine outbox_sqlite = OUTBOX_ENGINE("sqlite", "?");
