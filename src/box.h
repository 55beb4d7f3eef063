/*
** Which entries a processor serves: a set of namespaces, and classes of their keys. Processors of
** the same set share its 64 classes, so that each key is one processor's; see box_quota().
**
** A set is a text, so that equal sets are equal bytes: "" is all namespaces, "+1:a5:b,c,d" these
** two, "-1:a" all but this one. A name stands after its length, because it may hold any bytes, and
** the names are sorted.
*/
#ifndef OUTBOX_BOX_H
#define OUTBOX_BOX_H

#include "outbox.h"

#pragma GCC visibility push(hidden)

#define BOX_CLASSES 64

/* A hash of a namespace, which is odd, and one of a namespace and a key, which is even; never 0. */
uint64_t box_space(outbox_bytes namespace);
uint64_t box_line(uint64_t space, outbox_bytes key);

/* The class of an entry, by its line, or, without a key (0), by its seq. */
int box_class(uint64_t line, int64_t seq);

/* Whether a set has a namespace; whether two sets have one in common. */
bool box_serves(outbox_bytes set, outbox_bytes namespace);
bool box_overlaps(outbox_bytes a, outbox_bytes b);

/*
** Writes the text of a set of `count` names, or of all but these, and its final NUL. Sorts the
** names, and leaves out those that come again. Returns its size without the NUL, also where `text`
** is NULL.
*/
size_t box_write(char *text, outbox_bytes *names, size_t count, bool except);

/* How many classes a mask has. */
int box_count(uint64_t mask);

/*
** The classes that a processor should hold: as many as the other members of its set. It has those
** of `mask`, the other members those of `taken`. `overlapped`: another set has a part of this one.
** `strict`: all or none.
*/
uint64_t box_quota(uint64_t mask, uint64_t taken, int members, bool overlapped, bool strict);

#pragma GCC visibility pop

#endif
