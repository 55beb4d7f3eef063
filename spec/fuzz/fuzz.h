/*
** What the fuzz targets share. Each is one function that libFuzzer, or driver.c, calls with one
** input after the other. An input is a little program: its bytes choose, one after the other, what
** is done and with what. A target crashes where outbox does, and calls fail() where an answer is
** wrong.
*/
#ifndef FUZZ_H
#define FUZZ_H

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* What is left of the input; 0 for ever once that is nothing. */
typedef struct input {
  const uint8_t *data;
  size_t size;
} input;

static inline unsigned take(input *input) {
  if (input->size == 0) return 0;
  input->size--;
  return *input->data++;
}

/* A number below `count`. */
static inline unsigned choose(input *input, unsigned count) {
  return take(input) % count;
}

/* Ends the process. The first word of the message tells what kind of mismatch it is. */
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
