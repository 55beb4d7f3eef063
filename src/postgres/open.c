/*
** Opening and closing.
*/
#include <string.h>
#include <unistd.h>

#include "operations.h"

/* Whether a part of the URL that may be a secret has the text, or is in it. */
static bool is_secret(const char *secret, size_t size, const char *text, size_t length) {
  if (size == 0 || length == 0) return false;
  if (length > size) return is_secret(text, length, secret, size);
  for (size_t i = 0; i + length <= size; i++)
    if (memcmp(secret + i, text, length) == 0) return true;
  return false;
}

/* libpq quotes what it cannot read of a URL: that may be the password, or all of the URL. */
static void hide_password(outbox_store *store) {
  const char *rest = strstr(store->url, "://"), *user = rest != NULL ? rest + 3 : store->url;
  const char *parameter = strstr(user, "password="), *secret = user + strcspn(user, ":");
  const char *at = strrchr(secret, '@');
  size_t size = at != NULL ? (size_t)(at - secret) - 1 : 0;
  for (char *quote = store->message; (quote = strchr(quote, '"')) != NULL;) {
    char *end = strchr(++quote, '"');
    if (end == NULL) return;
    size_t length = (size_t)(end - quote);
    if (is_secret(secret + 1, size, quote, length) ||
        (parameter != NULL && is_secret(parameter + 9, strcspn(parameter + 9, "&"), quote, length)))
      memset(quote, '*', length);
    quote = end + 1;
  }
}

int outbox_open(outbox_store **out, const char *url, const outbox_options *options) {
  int code = store_make(out, url, options);
  if (code == OUTBOX_OK) code = connection_open(*out);
  if (code == OUTBOX_CANTOPEN) hide_password(*out);
  return code;
}

/* The server rolls back what is open when the connection is closed. */
int outbox_close(outbox_store *store) {
  if (store == NULL) return OUTBOX_OK;
  if (store->working)
    return store_fail(store, OUTBOX_MISUSE, "the store is in the middle of another call");
  outbox_finish(store);
  heartbeat_close(store);
  bell_close(store);
  for (int i = 0; i < store->call_count; i++)
    PQclear(store->calls[i].result);
  if (store->lane != NULL) store->free_lane(store->lane);
  connection_close(store->db, store->pid);
  store_free(store);
  return OUTBOX_OK;
}
