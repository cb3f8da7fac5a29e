/* Reads a file from standard input and asks a classifier what it is: the classifier sees the first and last 1024 bytes
 * of it, without the white space around them. Writes the scores. */
#include <stdbool.h>

#include "use.h"

enum { MOST = 1 << 20, BLOCK = 4096, SIDE = 1024, PADDING = 256, LABELS = 214 };

static bool is_space(uint8_t byte) { return byte == ' ' || (byte >= 9 && byte <= 13); }

int main(void) {
  static uint8_t file[MOST];
  static int32_t input[2 * SIDE];
  static float scores[LABELS];
  static const uint32_t dims[] = {1, 2 * SIDE};
  size_t len = fread(file, 1, MOST, stdin), block = len < BLOCK ? len : BLOCK, begin = 0, end = block;
  const uint8_t *last = file + len - block;
  while (begin < block && is_space(file[begin])) begin++;
  while (end > 0 && is_space(last[end - 1])) end--;
  for (size_t i = 0; i < SIDE; i++) {
    input[i] = begin + i < block ? file[begin + i] : PADDING;
    input[2 * SIDE - 1 - i] = i < end ? last[end - 1 - i] : PADDING;
  }
  nn_context context = use("file_type");
  give(context, 0, dims, 2, NN_TYPE_I32, input, sizeof input);
  check(nn_compute(context), "compute");
  take(context, 0, scores, sizeof scores);
  fwrite(scores, sizeof scores, 1, stdout);
  return 0;
}
