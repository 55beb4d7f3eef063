/*
** What the shim knows of this engine.
*/
#include "../engine.h"

const outbox_engine outbox_postgres = OUTBOX_ENGINE("postgres", "$1");
