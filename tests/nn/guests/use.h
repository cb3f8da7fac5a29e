/* What guests that run a model have in common: each call ends the guest if it fails. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "wasi_nn.h"

static inline void check(nn_errno error, const char *what) {
  if (error == NN_SUCCESS) return;
  fprintf(stderr, "%s: error %u of wasi-nn\n", what, (unsigned)error);
  exit(1);
}

/* A context of the model of this name. */
static inline nn_context use(const char *name) {
  nn_graph graph;
  nn_context context;
  check(nn_load_by_name(name, (uint32_t)strlen(name), &graph), "load_by_name");
  check(nn_init_execution_context(graph, &context), "init_execution_context");
  return context;
}

static inline void give(nn_context context, uint32_t index, const uint32_t *dims, uint32_t rank, uint8_t type,
                        const void *data, size_t len) {
  nn_tensor tensor = {.dims = (uint32_t *)dims, .rank = rank, .type = type, .data = (void *)data, .len = (uint32_t)len};
  check(nn_set_input(context, index, &tensor), "set_input");
}

static inline uint32_t take(nn_context context, uint32_t index, void *out, size_t room) {
  uint32_t len;
  check(nn_get_output(context, index, out, (uint32_t)room, &len), "get_output");
  return len;
}

static inline void *room_for(size_t len) {
  void *data = calloc(1, len);
  if (!data) abort();
  return data;
}
