/*
** The rows in the table of claims: what others hold, what this processor may hold, and what it has
** in hand.
**
** A row is a box: namespaces, classes, and an interval of seq. The boxes of live rows never
** overlap. Its number is never used again, so a processor that has lost its row finds no other in
** its place.
*/
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lane.h"

#define MOST_REAPED 64 /* at a time */

static const char SELECT_CLAIMS_SQL[] =
    "SELECT lease, processor_id, namespaces, classes, first_seq, last_seq, deadline, claimed_at,"
    " held FROM @claims";

static const char INSERT_CLAIM_SQL[] =
    "INSERT INTO @claims (processor_id, namespaces, classes, first_seq, last_seq, deadline,"
    " claimed_at, held) VALUES (?1, ?2, ?3, -9223372036854775808, 9223372036854775807, ?4, ?5, ?6)";

static const char UPDATE_CLAIM_SQL[] =
    "UPDATE @claims SET classes = ?2, deadline = ?3, claimed_at = ?4, held = ?5 WHERE lease = ?1";

static const char DELETE_CLAIM_SQL[] = "DELETE FROM @claims WHERE lease = ?1";

#define CHARGED "attempts = attempts + 1, last_error = '" OUTBOX_LAPSED "'"

static const char CHARGE_READY_SQL[] =
    "UPDATE @entries SET " CHARGED " WHERE seq BETWEEN ?1 AND ?2";

static const char CHARGE_DELAYED_SQL[] =
    "UPDATE @delayed SET " CHARGED ", due_at = min(due_at, ?3) WHERE position BETWEEN ?1 AND ?2";

/* --- What is in hand ------------------------------------------------------------------------- */

/*
** Names places: "17+3,2" is 17 to 20, and 22. Each number is relative to the last place before. The
** caller frees it. NULL: there is no memory, or nothing is in hand.
*/
static char *name_places(outbox_store *store, const items *list) {
  sqlite3_str *text = sqlite3_str_new(store->db);
  int64_t last = 0;
  for (size_t i = 0, n; i < list->count; i += n) {
    int64_t place = list->items[i].entry.seq;
    for (n = 1; i + n < list->count; n++)
      if (list->items[i + n].entry.seq != place + (int64_t)n) break;
    /* Unsigned, because the places need not be in order. */
    sqlite3_str_appendf(text, i > 0 ? ",%lld" : "%lld",
                        (int64_t)((uint64_t)place - (uint64_t)last));
    if (n > 1) sqlite3_str_appendf(text, "+%lld", (int64_t)n - 1);
    last = place + (int64_t)n - 1;
  }
  return sqlite3_str_finish(text);
}

/* Takes the next range of places off a text. False at the end, or where it is damaged. */
static bool next_places(const char **text, range *places) {
  char *end;
  if (**text == ',') ++*text;
  int64_t first = (int64_t)((uint64_t)places->last + (uint64_t)strtoll(*text, &end, 10));
  if (end == *text) return false;
  int64_t more = *end == '+' ? strtoll(end + 1, &end, 10) : 0;
  if (more < 0 || first > INT64_MAX - more) return false;
  *places = (range){first, first + more};
  *text = end;
  return true;
}

/* Charges an attempt to the entries that were in hand when their claim lapsed. */
static int charge(outbox_store *store, const char *held, int64_t now) {
  range places = {0, 0};
  int code = OUTBOX_OK;
  while (held != NULL && code == OUTBOX_OK && next_places(&held, &places)) {
    code = sql_process(store, CHARGE_READY_SQL, "ii", places.first, places.last);
    if (code == OUTBOX_OK)
      code = sql_process(store, CHARGE_DELAYED_SQL, "iii", places.first, places.last, now);
  }
  return code;
}

/* --- Looking at the claims ------------------------------------------------------------------- */

static bool is_lane(sqlite3_stmt *row) {
  return sqlite3_column_int64(row, 4) == INT64_MIN && sqlite3_column_int64(row, 5) == INT64_MAX;
}

static bool has_lapsed(const outbox_store *store, sqlite3_stmt *row, int64_t now) {
  return sqlite3_column_int64(row, 6) < now ||
         sqlite3_column_int64(row, 7) > now + SKEW + store->lock_wait.timeout;
}

static void note_live(sqlite3_stmt *row, survey *survey) {
  int64_t lapses_at = clock_later(sqlite3_column_int64(row, 6), 1);
  if (survey->lapses_at == 0 || lapses_at < survey->lapses_at) survey->lapses_at = lapses_at;
}

int lease_survey(outbox_store *store, int64_t now, bool reap, survey *survey) {
  const lane *lane = store->lane;
  int64_t lapsed[MOST_REAPED];
  int count = 0;
  sqlite3_stmt *row;
  *survey = (struct survey){0};
  int code = sql_query(store, SELECT_CLAIMS_SQL, &row, "");
  while (code == OUTBOX_OK && (code = sql_step(store, row)) == OUTBOX_ROW) {
    outbox_bytes namespaces = sql_column(row, 2);
    uint64_t classes = (uint64_t)sqlite3_column_int64(row, 3);
    code = OUTBOX_OK;
    if (lane->lease != 0 && sqlite3_column_int64(row, 0) == lane->lease &&
        bytes_equal(sql_column(row, 1), lane->processor_id)) {
      survey->own = true;
      survey->mask = classes;
      survey->members++;
    } else if (has_lapsed(store, row, now)) {
      survey->lapsed = true;
      if (!reap || count == MOST_REAPED) continue;
      lapsed[count++] = sqlite3_column_int64(row, 0);
      code = charge(store, (const char *)sqlite3_column_text(row, 8), now);
      if (code != OUTBOX_OK) sql_reset(store, row);
    } else if (note_live(row, survey), is_lane(row) && bytes_equal(namespaces, lane->namespaces)) {
      survey->members++;
      survey->taken |= classes;
    } else if (classes != 0 && box_overlaps(namespaces, lane->namespaces)) {
      survey->overlapped = true;
    }
  }
  if (code != OUTBOX_DONE) return code;
  code = OUTBOX_OK;
  for (int i = 0; i < count && code == OUTBOX_OK; i++)
    code = sql_process(store, DELETE_CLAIM_SQL, "i", lapsed[i]);
  if (!survey->own) survey->members++;
  return code;
}

/* The lowest bits of a mask, so many of them. */
static uint64_t lowest(uint64_t mask, int count) {
  uint64_t some = 0;
  for (; count > 0 && mask != 0; count--) {
    some |= mask & -mask;
    mask &= mask - 1;
  }
  return some;
}

static int count_bits(uint64_t mask) {
  int count = 0;
  for (; mask != 0; mask &= mask - 1)
    count++;
  return count;
}

uint64_t lease_share(const lane *lane, const survey *survey) {
  bool strict = lane->ordering == OUTBOX_ORDERING_STRICT;
  int quota = strict ? BOX_CLASSES : (BOX_CLASSES + survey->members - 1) / survey->members;
  int have = count_bits(survey->mask);
  if (survey->overlapped && have == 0) return 0; /* who came later stands by */
  if (have > quota) return lowest(survey->mask, quota);
  if (strict && survey->taken != 0) return survey->mask;
  return survey->mask | lowest(~(survey->mask | survey->taken), quota - have);
}

int lease_write(outbox_store *store, uint64_t mask, int64_t now, const items *hand, bool drop,
                int64_t *lease) {
  const lane *lane = store->lane;
  int64_t deadline = clock_later(now, lane->duration);
  if (drop) {
    int code = *lease != 0 ? sql_process(store, DELETE_CLAIM_SQL, "i", *lease) : OUTBOX_OK;
    *lease = 0;
    return code;
  }
  char *text = hand->count > 0 ? name_places(store, hand) : NULL;
  if (hand->count > 0 && text == NULL) return store_fail_nomem(store);
  outbox_bytes held = {text, text != NULL ? strlen(text) : 0};
  int code = *lease != 0 ? sql_process(store, UPDATE_CLAIM_SQL, "iiiit", *lease, (int64_t)mask,
                                       deadline, now, held)
                         : sql_process(store, INSERT_CLAIM_SQL, "ttiiit", lane->processor_id,
                                       lane->namespaces, (int64_t)mask, deadline, now, held);
  if (code == OUTBOX_OK && *lease == 0) *lease = sqlite3_last_insert_rowid(store->db);
  sqlite3_free(text);
  return code;
}
