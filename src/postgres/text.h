/*
** Text as PostgreSQL keeps it: UTF-8 without a NUL.
*/
#ifndef OUTBOX_PG_TEXT_H
#define OUTBOX_PG_TEXT_H

#include "../outbox.h"

#pragma GCC visibility push(hidden)

/* Whether the bytes are text; no value is. */
bool text_is_good(outbox_bytes bytes);

/*
** Makes text of the bytes, a question mark in place of each that does not fit. *copy: where they
** had to be changed, what the caller frees; else NULL. Without memory, the text has no value.
*/
outbox_bytes text_clean(outbox_bytes bytes, char **copy);

#pragma GCC visibility pop

#endif
