/*
** Every operation of a store, for trials.
*/
#include "operations.h"

#define LENGTH(array) (sizeof(array) / sizeof *(array))

/* Ends the transaction that an operation has begun. */
static int end(outbox_store *store, int code) {
  if (code == OUTBOX_OK) return outbox_commit(store);
  outbox_rollback(store);
  return code;
}

static int migrate(outbox_store *store, fixture *f) {
  (void)f;
  return outbox_migrate(store);
}

static int publish_many(outbox_store *store, fixture *f) {
  enum { MANY = 20 };
  static char names[MANY][8];
  outbox_message messages[MANY];
  char payload[3000];
  memset(payload, 'x', sizeof payload);
  for (int i = 0; i < MANY; i++) {
    snprintf(names[i], sizeof names[i], "new-%d", i);
    messages[i] = message(names[i]);
    messages[i].payload = (outbox_bytes){payload, sizeof payload};
    if (i == 7) messages[i].deliver_at = f->now + SECOND;
  }
  return outbox_publish(store, messages, MANY);
}

static int publish_one(outbox_store *store, fixture *f) {
  (void)f;
  outbox_message one = {.id = text("new"), .unique = true};
  return outbox_publish(store, &one, 1);
}

static int publish_on_an_attached_store(outbox_store *store, fixture *f) {
  outbox_options options = test_options(f);
  outbox_store *attached;
  int code = outbox_attach(&attached, outbox_connection(store), &options);
  if (code == OUTBOX_OK) code = publish_one(attached, f);
  if (code != OUTBOX_OK && attached != NULL)
    assert_int_not_equal(outbox_error_message(attached)[0], '\0');
  outbox_close(attached);
  return code;
}

/* Inserts a row of the application and publishes a message in one transaction. */
static int publish_with_an_order(outbox_store *store, fixture *f) {
  static const char WIDE[2000] = "";
  const outbox_value number = {.type = OUTBOX_INTEGER, .integer = 2},
                     bytes = {.type = OUTBOX_BLOB, .bytes = {WIDE, sizeof WIDE}};
  outbox_rows *rows;
  int64_t changed;
  int code = outbox_begin(store);
  if (code != OUTBOX_OK) return code;
  code = outbox_execute(store, "INSERT INTO orders VALUES (?)", &number, 1, &changed);
  if (code == OUTBOX_OK) code = outbox_query(store, &rows, "SELECT ?, * FROM orders", &bytes, 1);
  if (code == OUTBOX_OK) {
    code = outbox_next_row(rows);
    if (code == OUTBOX_ROW) assert_int_equal(outbox_column(rows, 1).integer, 2);
    if (code == OUTBOX_ROW) code = OUTBOX_OK;
    outbox_close_rows(rows);
  }
  if (code == OUTBOX_OK) code = publish_one(store, f);
  return end(store, code);
}

static int claim_everything(outbox_store *store, fixture *f) {
  outbox_claimed claimed;
  return outbox_claim_entries(store, text("q"), f->now + SECOND, 0, &claimed);
}

static int claim_a_few(outbox_store *store, fixture *f) {
  outbox_claimed claimed;
  return outbox_claim_entries(store, text("q"), f->now + SECOND, 2, &claimed);
}

static int claim_more(outbox_store *store, fixture *f) {
  outbox_claimed claimed;
  return outbox_claim_entries(store, text("p"), f->now + SECOND, 6, &claimed);
}

static int read_all(outbox_store *store) {
  outbox_entry entry;
  int code;
  while ((code = outbox_next(store, &entry)) == OUTBOX_ROW)
    continue;
  return code == OUTBOX_DONE ? OUTBOX_OK : code;
}

static int get(outbox_store *store, fixture *f) {
  (void)f;
  int code = outbox_get_claimed_entries(store, text("p"), 100, 0);
  return code == OUTBOX_OK ? read_all(store) : code;
}

static int renew(outbox_store *store, fixture *f) {
  bool renewed;
  return outbox_renew_claim(store, text("p"), f->now + 60 * SECOND, &renewed);
}

static int release(outbox_store *store, fixture *f) {
  (void)f;
  return outbox_release_claim(store, text("p"));
}

static int delete_some(outbox_store *store, fixture *f) {
  (void)f;
  int64_t deleted;
  outbox_bytes ids[] = {text("one"), text("late"), text("four"), text("nobody")};
  return delete_any(store, ids, LENGTH(ids), &deleted);
}

static int retry_one(outbox_store *store, fixture *f) {
  bool found;
  return outbox_retry_entry(store, any(text("two")), f->now + SECOND, text("no"), &found);
}

static int bury_one(outbox_store *store, fixture *f) {
  bool found;
  (void)f;
  return outbox_bury_entry(store, any(text("two")), text("no"), &found);
}

static int requeue(outbox_store *store, fixture *f) {
  int64_t requeued;
  outbox_bytes ids[] = {text("dead"), text("nobody")};
  (void)f;
  return outbox_requeue_entries(store, ids, LENGTH(ids), &requeued);
}

static int purge(outbox_store *store, fixture *f) {
  int64_t purged;
  outbox_bytes ids[] = {text("dead"), text("nobody")};
  (void)f;
  return outbox_purge_entries(store, ids, LENGTH(ids), &purged);
}

static int look_around(outbox_store *store, fixture *f) {
  static int (*const LISTS[])(outbox_store *, outbox_bytes, int64_t, int64_t) = {
      outbox_ready_entries, outbox_delayed_entries, outbox_dead_entries};
  (void)f;
  outbox_lease lease;
  outbox_counts counts;
  int code = OUTBOX_OK;
  for (size_t i = 0; i < LENGTH(LISTS) && code == OUTBOX_OK; i++) {
    code = LISTS[i](store, i == 1 ? text("") : (outbox_bytes){NULL, 0}, 0, 100);
    if (code == OUTBOX_OK) code = read_all(store);
  }
  if (code == OUTBOX_OK) code = outbox_count_entries(store, &counts);
  if (code == OUTBOX_OK) code = outbox_leases(store);
  if (code == OUTBOX_OK)
    while ((code = outbox_next_lease(store, &lease)) == OUTBOX_ROW)
      continue;
  return code == OUTBOX_DONE ? OUTBOX_OK : code;
}

static int listen(outbox_store *store, fixture *f) {
  bool rung;
  int64_t look_again;
  (void)f;
  outbox_pollfd(store);
  return outbox_wait(store, 0, &rung, &look_again);
}

/* The work of a processor between two calls of its publisher, in one transaction. */
static int process_a_batch(outbox_store *store, fixture *f) {
  outbox_bytes ids[] = {text("one"), text("two")};
  int64_t deleted;
  bool done;
  int code = outbox_begin(store);
  if (code != OUTBOX_OK) return code;
  code = claim_more(store, f);
  if (code == OUTBOX_OK) code = outbox_renew_claim(store, text("p"), f->now + SECOND, &done);
  if (code == OUTBOX_OK) code = delete_any(store, ids, LENGTH(ids), &deleted);
  if (code == OUTBOX_OK)
    code = outbox_retry_entry(store, any(text("three")), f->now + SECOND, text("no"), &done);
  if (code == OUTBOX_OK) code = outbox_bury_entry(store, any(text("four")), text("never"), &done);
  if (code == OUTBOX_OK) code = outbox_get_claimed_entries(store, text("p"), 2, 1000);
  if (code == OUTBOX_OK) code = read_all(store);
  if (code == OUTBOX_OK) code = outbox_hold_batch(store, text("p"));
  return end(store, code);
}

/* The work of a processor on lanes: it takes a batch, and then settles it and takes the next. */
static int take_a_batch(outbox_store *store, fixture *f) {
  outbox_service service = {.processor_id = text("lane"),
                            .except = true,
                            .duration = 60 * SECOND,
                            .ordering = OUTBOX_ORDERING_KEY};
  outbox_want want = {.batch_size = 4, .batch_bytes = 1000000};
  outbox_progress progress;
  (void)f;
  int code = outbox_serve(store, &service);
  if (code == OUTBOX_OK || code == OUTBOX_MISUSE) /* it did so in an earlier try */
    code = outbox_advance(store, NULL, 0, &want, &progress);
  return code;
}

static int settle_a_batch(outbox_store *store, fixture *f) {
  static const enum outbox_outcome OUTCOMES[] = {OUTBOX_DELIVERED, OUTBOX_RETRY, OUTBOX_BURY,
                                                 OUTBOX_PUT_OFF};
  outbox_verdict verdicts[LENGTH(OUTCOMES)];
  outbox_want want = {.batch_size = 4};
  outbox_progress progress;
  for (size_t i = 0; i < LENGTH(OUTCOMES); i++)
    verdicts[i] =
        (outbox_verdict){.outcome = OUTCOMES[i], .at = f->now + SECOND, .error = text("no")};
  return outbox_advance(store, verdicts, LENGTH(verdicts), &want, &progress);
}

/* --- Subscriptions, pauses, outages ---------------------------------------------------------- */

static int subscribe(outbox_store *store, fixture *f) {
  bool added;
  (void)f;
  int code = outbox_begin(store);
  if (code != OUTBOX_OK) return code;
  code = outbox_subscribe(store, text(""), text("mail"), &added);
  if (code == OUTBOX_OK) code = outbox_subscribe(store, text(""), text("audit"), &added);
  return end(store, code);
}

static int unsubscribe(outbox_store *store, fixture *f) {
  bool removed;
  (void)f;
  int code = outbox_begin(store);
  if (code != OUTBOX_OK) return code;
  code = outbox_unsubscribe(store, text(""), text("mail"), &removed);
  if (code == OUTBOX_OK) code = outbox_unsubscribe(store, text(""), text("audit"), &removed);
  return end(store, code);
}

static int pause_namespaces(outbox_store *store, fixture *f) {
  bool paused;
  (void)f;
  return outbox_pause(store, text(""), &paused);
}

static int resume_namespaces(outbox_store *store, fixture *f) {
  bool resumed;
  (void)f;
  return outbox_resume(store, text(""), &resumed);
}

static int note_outages(outbox_store *store, fixture *f) {
  bool noted;
  outbox_outage outages[] = {{text("mail"), f->now, text("refused")},
                             {text(""), f->now, {NULL, 0}}};
  return outbox_note_outages(store, outages, LENGTH(outages), &noted);
}

static int look_at_namespaces(outbox_store *store, fixture *f) {
  outbox_subscription subscription;
  outbox_paused paused;
  outbox_summary summary;
  (void)f;
  int code = outbox_subscriptions(store);
  if (code == OUTBOX_OK)
    while ((code = outbox_next_subscription(store, &subscription)) == OUTBOX_ROW)
      continue;
  if (code == OUTBOX_DONE) code = outbox_paused_namespaces(store);
  if (code == OUTBOX_OK)
    while ((code = outbox_next_paused(store, &paused)) == OUTBOX_ROW)
      continue;
  if (code == OUTBOX_DONE) code = outbox_summaries(store);
  if (code == OUTBOX_OK)
    while ((code = outbox_next_summary(store, &summary)) == OUTBOX_ROW)
      continue;
  return code == OUTBOX_DONE ? OUTBOX_OK : code;
}

/* --- The list -------------------------------------------------------------------------------- */

const operation operations[] = {
    {.name = "open and migrate", .run = migrate, .opening = true},
    {.name = "migrate", .run = migrate},
    {.name = "open and publish", .run = publish_one, .tables = true, .opening = true},
    {.name = "publish one", .run = publish_one, .tables = true},
    {.name = "publish many", .run = publish_many, .tables = true},
    {.name = "publish with an order", .run = publish_with_an_order, .tables = true},
    {.name = "attach and publish",
     .run = publish_on_an_attached_store,
     .tables = true,
     .apart = true},
    {.name = "claim everything", .run = claim_everything, .tables = true},
    {.name = "claim a few", .run = claim_a_few, .tables = true},
    {.name = "claim more", .run = claim_more, .tables = true},
    {.name = "get", .run = get, .tables = true},
    {.name = "renew", .run = renew, .tables = true},
    {.name = "release", .run = release, .tables = true},
    {.name = "delete", .run = delete_some, .tables = true},
    {.name = "retry", .run = retry_one, .tables = true},
    {.name = "bury", .run = bury_one, .tables = true},
    {.name = "requeue", .run = requeue, .tables = true},
    {.name = "purge", .run = purge, .tables = true},
    {.name = "look around", .run = look_around, .tables = true},
    {.name = "listen", .run = listen, .tables = true},
    {.name = "process a batch", .run = process_a_batch, .tables = true},
    {.name = "take a batch", .run = take_a_batch, .tables = true},
    {.name = "settle a batch", .run = settle_a_batch, .prepare = take_a_batch, .tables = true},
    {.name = "subscribe", .run = subscribe, .tables = true},
    {.name = "unsubscribe", .run = unsubscribe, .prepare = subscribe, .tables = true},
    {.name = "publish copies", .run = publish_many, .prepare = subscribe, .tables = true},
    {.name = "pause", .run = pause_namespaces, .tables = true},
    {.name = "resume", .run = resume_namespaces, .prepare = pause_namespaces, .tables = true},
    {.name = "take a paused batch",
     .run = take_a_batch,
     .prepare = pause_namespaces,
     .tables = true},
    {.name = "note outages", .run = note_outages, .prepare = take_a_batch, .tables = true},
    {.name = "look at namespaces", .run = look_at_namespaces, .prepare = subscribe, .tables = true},
};
const size_t operation_count = LENGTH(operations);
