/* Multiplies two matrices on the device, in place: they and the product lie in this guest's own memory, and the device
 * works on those very bytes. Then the guest verifies every element.
 *
 *   matmul [--repeats N] [--copy] [--json]
 *
 * --copy goes through device buffers instead, with explicit copies there and back, to measure what sharing saves.
 */
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "wasmetal.h"

#define N 128
#define BYTES (N * N * sizeof(float))

/* A shared range is whole pages of the host; 64 KiB is a multiple of any host's. */
static _Alignas(65536) float a[N][N];
static _Alignas(65536) float b[N][N];
static _Alignas(65536) float product[N][N];
static float expected[N][N];

static void check(wm_errno error, const char *what) {
  if (error == WM_SUCCESS) return;
  fprintf(stderr, "matmul: %s: %s\n", what, strerror((int)error));
  exit(1);
}

/* Multiples of 1/8 below 1: every product and every sum of 128 of them is exact in float32, in any order. */
static void fill(void) {
  for (int i = 0; i < N; i++)
    for (int j = 0; j < N; j++) {
      a[i][j] = (float)((i * 7 + j * 3) % 15 - 7) / 8;
      b[i][j] = (float)((i * 5 + j * 11) % 13 - 6) / 8;
    }
  for (int i = 0; i < N; i++)
    for (int k = 0; k < N; k++)
      for (int j = 0; j < N; j++) expected[i][j] += a[i][k] * b[k][j];
}

static int count_right(void) {
  int right = 0;
  for (int i = 0; i < N; i++)
    for (int j = 0; j < N; j++) right += product[i][j] == expected[i][j];
  return right;
}

static wm_tensor matrix(wm_buffer buffer) {
  return (wm_tensor){.buffer = buffer, .dtype = WM_F32, .rank = 2, .shape = {N, N}};
}

static double now_ms(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1e3 + t.tv_nsec / 1e6;
}

static int ascending(const void *x, const void *y) {
  double l = *(const double *)x, r = *(const double *)y;
  return (l > r) - (l < r);
}

int main(int argc, char **argv) {
  int repeats = 10;
  bool copy = false, json = false;
  for (int i = 1; i < argc; i++) {
    if (!strcmp(argv[i], "--copy")) copy = true;
    else if (!strcmp(argv[i], "--json")) json = true;
    else if (!strcmp(argv[i], "--repeats") && i + 1 < argc && (repeats = atoi(argv[++i])) > 0) continue;
    else {
      fprintf(stderr, "usage: matmul [--repeats N] [--copy] [--json]\n");
      return 2;
    }
  }

  wm_buffer in_a, in_b, out;
  if (copy) {
    check(wm_buffer_create_device(BYTES, WM_USAGE_READ, &in_a), "buffer_create_device");
    check(wm_buffer_create_device(BYTES, WM_USAGE_READ, &in_b), "buffer_create_device");
    check(wm_buffer_create_device(BYTES, WM_USAGE_WRITE, &out), "buffer_create_device");
  } else {
    check(wm_buffer_create(a, BYTES, WM_USAGE_READ, &in_a), "buffer_create");
    check(wm_buffer_create(b, BYTES, WM_USAGE_READ, &in_b), "buffer_create");
    check(wm_buffer_create(product, BYTES, WM_USAGE_WRITE, &out), "buffer_create");
  }
  const wm_command command = {.op = WM_OP_MATMUL, .t = {matrix(in_a), matrix(in_b), matrix(out)}};

  fill();
  double *ms = malloc(sizeof(double) * (size_t)repeats);
  if (!ms) return 1;
  int right = N * N;
  for (int i = 0; i < repeats; i++) {
    memset(product, 0xff, BYTES);
    wm_submission submission;
    double start = now_ms();
    if (copy) {
      check(wm_buffer_write(in_a, 0, a, BYTES), "buffer_write");
      check(wm_buffer_write(in_b, 0, b, BYTES), "buffer_write");
    }
    check(wm_commands_submit(&command, sizeof command, &submission), "commands_submit");
    check(wm_submission_wait(submission, WM_FOREVER), "submission_wait");
    if (copy) check(wm_buffer_read(out, 0, product, BYTES), "buffer_read");
    ms[i] = now_ms() - start;
    int now = count_right();
    if (now < right) right = now;
  }
  qsort(ms, (size_t)repeats, sizeof *ms, ascending);

  wm_counters counters;
  check(wm_counters_read(&counters), "counters_read");
  const char *mode = copy ? "copied" : "shared";
  if (json)
    printf("{\"n\": %d, \"mode\": \"%s\", \"verified\": %d, \"repeats\": %d, \"best_ms\": %.6f, \"median_ms\": %.6f, "
           "\"bytes_copied\": %llu}\n",
           N, mode, right, repeats, ms[0], ms[repeats / 2], (unsigned long long)counters.bytes_copied);
  else
    printf("%dx%d matrices %s: %d of %d elements right, %.3f ms, %llu bytes copied\n", N, N, mode, right, N * N,
           ms[repeats / 2], (unsigned long long)counters.bytes_copied);
  return right == N * N ? 0 : 1;
}
