/*
** Intervals of seq, as arrays that grow.
*/
#include "interval.h"

bool intervals_append(intervals *list, interval item) {
  if ((list->count & (list->count - 1)) == 0) { /* full at every power of two */
    uint64_t capacity = list->count == 0 ? 1 : 2 * (uint64_t)list->count;
    interval *items = list->reallocate(list->items, capacity * sizeof item);
    if (items == NULL) return false;
    list->items = items;
  }
  list->items[list->count++] = item;
  return true;
}

bool intervals_join(intervals *list, interval item) {
  interval *before = list->count > 0 ? &list->items[list->count - 1] : NULL;
  if (before != NULL && before->last < item.first && before->last + 1 == item.first) {
    before->last = item.last;
    return true;
  }
  return intervals_append(list, item);
}
