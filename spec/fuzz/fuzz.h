/*
** Support for the fuzz targets. A target is one function, which libFuzzer or driver.c calls for
** each input. An input is a small program: its bytes choose the operations and their arguments, one
** after the other. A target crashes when outbox crashes, and calls fail() when a result is wrong.
*/
#ifndef FUZZ_H
#define FUZZ_H

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* The bytes of the input that have not been taken yet. */
typedef struct input {
  const uint8_t *data;
  size_t size;
} input;

/* Takes the next byte. Returns 0 if none is left. */
static inline unsigned take(input *input) {
  if (input->size == 0) return 0;
  input->size--;
  return *input->data++;
}

/* Takes a byte and makes a number below `count` of it. */
static inline unsigned choose(input *input, unsigned count) {
  return take(input) % count;
}

/* Prints a message and aborts the process. The first word of the message names the kind of
** mismatch. tools/fuzz counts the messages that begin with "lost" or "phantom". */
static inline void fail(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  fputs("MISMATCH ", stderr);
  vfprintf(stderr, format, arguments);
  fputc('\n', stderr);
  va_end(arguments);
  abort();
}

#endif
