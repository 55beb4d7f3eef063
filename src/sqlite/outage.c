/*
** Outages: which namespaces a processor has found down, and since when. Its rows go with its claim:
** they are of a lease, whose number is never used again.
*/
#include "lane.h"

static const char FORGET_SQL[] =
    "DELETE FROM @outages WHERE lease = ?1 OR lease NOT IN (SELECT lease FROM @claims)";

static const char NOTE_SQL[] =
    "INSERT OR REPLACE INTO @outages (namespace, lease, down_since, error) VALUES (?1, ?2, ?3, ?4)";

int outbox_note_outages(outbox_store *store, const outbox_outage *outages, size_t count,
                        bool *noted) {
  *noted = false;
  int code = transaction_enter(store);
  if (code != OUTBOX_OK || store->lane == NULL || store->lane->lease == 0) return code;
  code = outbox_begin(store);
  if (code != OUTBOX_OK) return code;
  code = sql_process(store, FORGET_SQL, "i", store->lane->lease);
  for (size_t i = 0; i < count && code == OUTBOX_OK; i++)
    code = sql_process(store, NOTE_SQL, "tiit", outages[i].namespace, store->lane->lease,
                       outages[i].down_since, outages[i].error);
  code = transaction_end(store, code);
  *noted = code == OUTBOX_OK;
  return code;
}
