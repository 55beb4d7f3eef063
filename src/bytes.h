/*
** Strings that may hold any bytes.
*/
#ifndef OUTBOX_BYTES_H
#define OUTBOX_BYTES_H

#include "outbox.h"

#pragma GCC visibility push(hidden)

/* Whether the bytes are the same. No value counts as the same as an empty string. */
bool bytes_equal(outbox_bytes a, outbox_bytes b);

#pragma GCC visibility pop

#endif
