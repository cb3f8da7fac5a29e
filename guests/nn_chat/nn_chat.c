/* A conversation with a language model through wasi-nn: written against the standard, with WasmEdge's extensions for
 * texts, and nothing of wasmetal's.
 *
 *   nn_chat [-p PROMPT] [--single] [--system TEXT] [--model NAME] [--options JSON]
 *
 * It answers -p, or each line of standard input as a turn of one conversation, and writes prompts as ChatML. With
 * --single it asks for the answer token by token. Every prompt is the whole conversation: the host computes only what
 * follows the beginning that it has in common with the last one.
 */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "wasi_nn.h"

static const char *model = "default", *options = "{}";
static const char *system_text = "You are a helpful AI assistant named SmolLM, trained by Hugging Face";
static bool single;

static char *text; /* the conversation so far, as ChatML */
static size_t length, room;

static void check(nn_errno error, const char *what) {
  if (error == NN_SUCCESS) return;
  fprintf(stderr, "nn_chat: %s: error %u of wasi-nn\n", what, (unsigned)error);
  exit(1);
}

static void append(const char *data, size_t len) {
  if (length + len > room) {
    room = 2 * (length + len);
    text = realloc(text, room);
    if (!text) abort();
  }
  memcpy(text + length, data, len);
  length += len;
}

static void append_text(const char *data) { append(data, strlen(data)); }

static void append_message(const char *role, const char *content) {
  append_text("<|im_start|>");
  append_text(role);
  append_text("\n");
  append_text(content);
  append_text("<|im_end|>\n");
}

static void set_input(nn_context context, uint32_t index, const char *data, size_t len) {
  uint32_t dims[1] = {(uint32_t)len};
  nn_tensor tensor = {.dims = dims, .rank = 1, .type = NN_TYPE_U8, .data = (void *)data, .len = (uint32_t)len};
  check(nn_set_input(context, index, &tensor), "set_input");
}

/* The output, which the caller frees. */
static char *output(nn_context context, uint32_t index, uint32_t *len) {
  check(nn_get_output(context, index, NULL, 0, len) == NN_TOO_LARGE || !*len ? NN_SUCCESS : NN_RUNTIME_ERROR, "length");
  char *data = malloc(*len + 1);
  if (!data) abort();
  check(nn_get_output(context, index, data, *len, len), "get_output");
  return data;
}

static void answer_by_tokens(nn_context context) {
  nn_errno error;
  while ((error = nn_compute_single(context)) == NN_SUCCESS) {
    char piece[1024];
    uint32_t len;
    check(nn_get_output_single(context, 0, piece, sizeof piece, &len), "get_output_single");
    fwrite(piece, 1, len, stdout);
    fflush(stdout);
    append(piece, len);
  }
  if (error != NN_END_OF_SEQUENCE && error != NN_CONTEXT_FULL) check(error, "compute_single");
  check(nn_fini_single(context), "fini_single");
}

static void answer(nn_context context, const char *question) {
  append_message("user", question);
  append_text("<|im_start|>assistant\n");
  set_input(context, 0, text, length);
  if (single) {
    answer_by_tokens(context);
  } else {
    nn_errno error = nn_compute(context);
    if (error != NN_END_OF_SEQUENCE && error != NN_CONTEXT_FULL) check(error, "compute");
    uint32_t len;
    char *data = output(context, 0, &len);
    fwrite(data, 1, len, stdout);
    append(data, len);
    free(data);
  }
  putchar('\n');
  fflush(stdout);
  append_text("<|im_end|>\n");
}

int main(int argc, char **argv) {
  const char *prompt = NULL;
  for (int i = 1; i < argc; i++) {
    const char *name = argv[i], *value = i + 1 < argc ? argv[i + 1] : NULL;
    if (!strcmp(name, "--single")) { single = true; continue; }
    if (value && !strcmp(name, "-p")) prompt = value;
    else if (value && !strcmp(name, "--system")) system_text = value;
    else if (value && !strcmp(name, "--model")) model = value;
    else if (value && !strcmp(name, "--options")) options = value;
    else {
      fputs("usage: nn_chat [-p PROMPT] [--single] [--system TEXT] [--model NAME] [--options JSON]\n", stderr);
      return 2;
    }
    i++;
  }
  nn_graph graph;
  nn_context context;
  check(nn_load_by_name_with_config(model, (uint32_t)strlen(model), options, (uint32_t)strlen(options), &graph), "load");
  check(nn_init_execution_context(graph, &context), "init_execution_context");
  append_message("system", system_text);
  if (prompt) {
    answer(context, prompt);
  } else {
    static char line[65536];
    while (fgets(line, sizeof line, stdin)) {
      line[strcspn(line, "\n")] = 0;
      if (*line) answer(context, line);
    }
  }
  check(nn_finalize_execution_context(context), "finalize_execution_context");
  check(nn_unload(graph), "unload");
  return 0;
}
