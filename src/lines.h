/*
** What a processor has left behind on its walk through the queue. A line is a namespace whose
** destination is down, or a namespace and key whose head waits for a retry. Of each it remembers
** the first place at which something of the line was left behind, and why.
*/
#ifndef OUTBOX_LINES_H
#define OUTBOX_LINES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#pragma GCC visibility push(hidden)

#define NEVER INT64_MAX /* no place */

/* The lower of two places. */
static inline int64_t lines_lower(int64_t a, int64_t b) {
  return a < b ? a : b;
}

enum line_state {
  LINE_GONE,   /* forgotten */
  LINE_PARKED, /* a namespace that is handed out only where it is asked for */
  LINE_HELD,   /* waits for a retry */
  LINE_LAGGING /* free, and waits for the lap to come by */
};

typedef struct heads heads; /* see heads.h */

typedef struct line {
  uint64_t hash;  /* of a namespace (odd) or of a key (even); 0: nothing is kept here */
  int64_t first;  /* nothing of it was left behind before; NEVER: nothing at all */
  int64_t next;   /* the same, as far as this lap has come */
  int64_t head;   /* HELD: the retry that it waits for */
  heads *heads;   /* of a namespace that is, or was, PARKED: as far as they are known, or NULL */
  uint64_t since; /* PARKED: the sweep that was on when it was parked, or its round began */
  enum line_state state;
  bool parked, paused; /* PARKED: by the processor; by an operator */
  bool joined;         /* this lap serves it */
  bool blocked;        /* something of it is in hand, and was not delivered */
} line;

/* A hash table. Empty if all fields but the functions, which work as realloc and free, are zero. */
typedef struct lines {
  line *items;
  size_t room; /* a power of 2, or 0 */
  size_t used; /* with those that are gone */
  size_t live; /* without them */
  void *(*reallocate)(void *items, uint64_t size);
  void (*free_heads)(heads *heads);
} lines;

/* Makes room for `count` more lines. False: there is no memory. */
bool lines_reserve(lines *lines, size_t count);

/* The line of a hash, or NULL. A hash of 0 has none. */
line *lines_find(const lines *lines, uint64_t hash);

/*
** The same, but adds it in this state, with nothing left behind, where it is not there. There must
** be room.
*/
line *lines_add(lines *lines, uint64_t hash, enum line_state state);

/* Forgets a line. */
void lines_drop(lines *lines, line *line);

/* The next line after `line`, the first after NULL; NULL at the end. */
line *lines_next(const lines *lines, line *line);

/* Forgets all, and gives the memory back. */
void lines_clear(lines *lines);

#pragma GCC visibility pop

#endif
