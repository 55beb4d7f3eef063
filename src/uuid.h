/*
** The random numbers of the ID generators.
*/
#ifndef OUTBOX_UUID_H
#define OUTBOX_UUID_H

#include "outbox.h"

#pragma GCC visibility push(hidden)

/* Sets up to 8 bytes, of a supply in `state`. False: the system has no random numbers. */
bool uuid_random(outbox_uuid_state *state, void *bytes, size_t size);

#pragma GCC visibility pop

#endif
