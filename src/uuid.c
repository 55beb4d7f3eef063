/*
** The ID generators that come with the library: UUIDs as text.
*/
#define _DEFAULT_SOURCE

#include <string.h>
#include <unistd.h>

#include "uuid.h"

/* Sets the bits of the version and the variant; makes the text of the 16 bytes the id. */
static void set_uuid(outbox_message *message, uint8_t uuid[16], int version) {
  static const char DIGITS[] = "0123456789abcdef";
  uuid[6] = (uint8_t)((uuid[6] & 0x0f) | version << 4);
  uuid[8] = (uint8_t)((uuid[8] & 0x3f) | 0x80);
  char *text = message->generated_id;
  for (int i = 0; i < 16; i++) {
    if (i == 4 || i == 6 || i == 8 || i == 10) *text++ = '-';
    *text++ = DIGITS[uuid[i] >> 4];
    *text++ = DIGITS[uuid[i] & 15];
  }
  *text = '\0';
  message->id = (outbox_bytes){message->generated_id, OUTBOX_ID_SIZE - 1};
}

bool uuid_random(outbox_uuid_state *state, void *bytes, size_t size) {
  if (state->left < size) {
    if (getentropy(state->random, sizeof state->random) != 0) return false;
    state->left = sizeof state->random;
  }
  state->left -= size;
  memcpy(bytes, state->random + state->left, size);
  return true;
}

int outbox_uuid_v7(void *context, int64_t now, outbox_message *message) {
  outbox_uuid_state *state = context;
  uint8_t uuid[16];
  if (!uuid_random(state, uuid + 8, 8)) return -1;
  /* 60 bits of time in units of 1/4096 ms. Counts on when the clock stands still or goes back. */
  uint64_t microseconds = now > 0 ? (uint64_t)now : 0;
  uint64_t time = (microseconds / 1000) << 12 | (microseconds % 1000) * 4096 / 1000;
  if (time <= state->last) time = state->last + 1;
  state->last = time;
  for (int i = 0; i < 6; i++)
    uuid[i] = (uint8_t)(time >> (52 - 8 * i));
  uuid[6] = (uint8_t)(time >> 8 & 0x0f);
  uuid[7] = (uint8_t)time;
  set_uuid(message, uuid, 7);
  return 0;
}

int outbox_uuid_v4(void *context, int64_t now, outbox_message *message) {
  uint8_t uuid[16];
  (void)context, (void)now;
  if (getentropy(uuid, sizeof uuid) != 0) return -1;
  set_uuid(message, uuid, 4);
  return 0;
}
