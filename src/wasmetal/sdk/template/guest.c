/* Doubles an array on the device, in place: the array is in this guest's own memory, and the device works on it there.
 *
 * wasmetal.h (its folder: wasmetal sdk include-dir) documents every function, struct and op.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "wasmetal.h"

#define N 16384

/* A shared range is whole pages of the host; 64 KiB is a multiple of any host's page size. */
static _Alignas(65536) float x[N];

static void check(wm_errno error, const char *what) {
  if (error == WM_SUCCESS) return;
  fprintf(stderr, "{{name}}: %s: %s\n", what, strerror((int)error));
  exit(1);
}

int main(void) {
  for (int i = 0; i < N; i++) x[i] = (float)i;

  wm_buffer buffer;
  check(wm_buffer_create(x, sizeof x, WM_USAGE_READ | WM_USAGE_WRITE, &buffer), "buffer_create");

  const wm_tensor tensor = {.buffer = buffer, .dtype = WM_F32, .rank = 1, .shape = {N}};
  const wm_command scale = {.op = WM_OP_SCALE, .attributes = {{.f32 = 2}}, .t = {tensor, tensor}};
  wm_submission submission;
  check(wm_commands_submit(&scale, sizeof scale, &submission), "commands_submit");
  check(wm_submission_wait(submission, WM_FOREVER), "submission_wait");

  for (int i = 0; i < N; i++)
    if (x[i] != 2 * (float)i) {
      fprintf(stderr, "{{name}}: element %d is %g\n", i, (double)x[i]);
      return 1;
    }
  wm_counters counters;
  check(wm_counters_read(&counters), "counters_read");
  printf("{{name}}: %d elements doubled in place, %llu bytes copied\n", N, (unsigned long long)counters.bytes_copied);
  return 0;
}
