/*
** The store: what it is made of, its clock, and its errors.
*/
#define _POSIX_C_SOURCE 200809L

#include "store.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const outbox_options DEFAULTS = OUTBOX_DEFAULTS;

int store_make(outbox_store **out, const char *url, const outbox_options *options) {
  if (options == NULL) options = &DEFAULTS;
  outbox_store *store = *out = calloc(1, sizeof *store);
  if (store == NULL) return OUTBOX_NOMEM;
  store->pid = getpid();
  store->mode = options->mode;
  store->synchronous = options->synchronous;
  store->busy_timeout = options->busy_timeout;
  store->clock = options->clock;
  store->clock_context = options->clock_context;
  store->id_generator = options->id_generator;
  store->id_generator_context = options->id_generator_context;
  store->bytes_left = -1;
  const char *prefix = options->prefix != NULL ? options->prefix : DEFAULTS.prefix;
  if (!outbox_is_prefix((outbox_bytes){prefix, strlen(prefix)}))
    return store_fail(store, OUTBOX_MISUSE, "the prefix is not a plain identifier");
  if (strlen(prefix) > 40) /* the names of indexes must not be cut at 63 bytes */
    return store_fail(store, OUTBOX_MISUSE, "the prefix has more than 40 letters");
  store->prefix = strdup(prefix);
  store->url = strdup(url);
  return store->prefix != NULL && store->url != NULL ? OUTBOX_OK : store_fail_nomem(store);
}

void store_free(outbox_store *store) {
  free(store->prefix);
  free(store->url);
  free(store->schema);
  free(store->hand_places);
  free(store->hand_partitions);
  free(store->held);
  free(store);
}

bool store_is_ours(const outbox_store *store) {
  return store->pid == getpid();
}

const char *outbox_prefix(const outbox_store *store) {
  return store->prefix;
}

int store_now(outbox_store *store, int64_t *now) {
  if (store->clock == NULL) {
    outbox_system_clock(NULL, now);
    *now += store->skew;
  } else if (store->clock(store->clock_context, now) != 0) {
    return store_fail(store, OUTBOX_CALLBACK, "the clock failed");
  }
  return OUTBOX_OK;
}

int outbox_now(outbox_store *store, int64_t *now) {
  return store_now(store, now);
}

int store_now_inside(outbox_store *store, int64_t *now) {
  store->working = true;
  int code = store_now(store, now);
  store->working = false;
  return code;
}

int store_fail(outbox_store *store, int code, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(store->message, sizeof store->message, format, arguments);
  va_end(arguments);
  return code;
}

int store_fail_nomem(outbox_store *store) {
  return store_fail(store, OUTBOX_NOMEM, "not enough memory");
}

const char *outbox_error_message(const outbox_store *store) {
  return store->message;
}
