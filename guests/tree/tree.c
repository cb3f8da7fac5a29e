/* Searches a tree of continuations: one prompt, many branches, the best of them by log-probability.
 *
 *   tree -p PROMPT [--branches N] [--tokens N] [--best N] [--model NAME]
 *
 * The prompt is run once. Each branch forks its session, begins with another one of the likeliest next tokens, and goes
 * on with the likeliest token each time. The branches hold the prompt's keys and values together: a page of the KV cache
 * is copied, on the device, when a branch writes to it, and only then. Written are the best branches, by their mean
 * log-probability a token, as a line each with the text as a JSON string; then what it took.
 *
 * As an actor, it searches from each message, and replies with those lines. The sessions stay open until the next
 * message, so that the tree is part of the actor's state.
 */
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <wasi/api.h>

#include "wasmetal/text.h"
#include "wasmetal.h"

#define MAX_TOKENS 1024 /* of a branch */

typedef struct Branch {
  wm_session session;
  wm_token *tokens;
  uint32_t length;
  double logprob; /* of its tokens after the prompt */
} Branch;

static const char *prompt_text, *model_name = "default";
static uint32_t branch_count = WM_MAX_TOP, token_count = 8, best_count = 5;

static wm_model model;
static wm_model_info info;
static wm_token *ends;
static wm_session root; /* 0: no tree */
static Branch branches[WM_MAX_TOP];
static void (*write_out)(const char *data, size_t len);

static void check(wm_errno error, const char *what) {
  if (error == WM_SUCCESS) return;
  fprintf(stderr, "tree: %s: %s\n", what, strerror((int)error));
  exit(1);
}

static void *allocate(size_t count, size_t size) {
  void *memory = calloc(count ? count : 1, size);
  if (!memory) check(WM_NOMEM, "memory");
  return memory;
}

/* ---- The command line --------------------------------------------------------------------------------------------- */

static bool usage(void) {
  fputs("usage: tree -p PROMPT [--branches N] [--tokens N] [--best N] [--model NAME]\n", stderr);
  return false;
}

static bool number(const char *name, const char *text, uint32_t most, uint32_t *value) {
  char *end;
  unsigned long found = strtoul(text, &end, 10);
  if (*text >= '0' && *text <= '9' && !*end && found >= 1 && found <= most) {
    *value = (uint32_t)found;
    return true;
  }
  fprintf(stderr, "tree: %s is a number from 1 to %u, not '%s'\n", name, most, text);
  return false;
}

static bool parse(int argc, char **argv) {
  for (int i = 1; i < argc; i += 2) {
    const char *name = argv[i], *text = argv[i + 1];
    if (i + 1 == argc) return usage();
    if (!strcmp(name, "-p")) prompt_text = text;
    else if (!strcmp(name, "--model")) model_name = text;
    else if (!strcmp(name, "--branches")) {
      if (!number(name, text, WM_MAX_TOP, &branch_count)) return false;
    } else if (!strcmp(name, "--tokens")) {
      if (!number(name, text, MAX_TOKENS, &token_count)) return false;
    } else if (!strcmp(name, "--best")) {
      if (!number(name, text, WM_MAX_TOP, &best_count)) return false;
    } else return usage();
  }
  return true;
}

/* Returns 0, or an exit code: 1 (the model cannot be used) or 2 (the arguments are wrong). */
static int begin(int argc, char **argv) {
  if (!parse(argc, argv)) return 2;
  wm_errno error = wm_model_open(model_name, strlen(model_name), &model);
  if (error == WM_NOENT) {
    fprintf(stderr, "tree: no model named '%s' was granted\n", model_name);
    return 1;
  }
  check(error, "model_open");
  check(wm_model_describe(model, &info), "model_describe");
  size_t len = info.end_tokens;
  ends = allocate(len, sizeof *ends);
  check(wm_model_end_tokens(model, ends, len, &len), "model_end_tokens");
  if (branch_count > info.vocab_size) branch_count = info.vocab_size;
  for (uint32_t i = 0; i < branch_count; i++) branches[i].tokens = allocate(token_count, sizeof(wm_token));
  return 0;
}

/* ---- The search --------------------------------------------------------------------------------------------------- */

static void close_tree(void) {
  if (!root) return;
  for (uint32_t i = 0; i < branch_count; i++) check(wm_session_close(branches[i].session), "session_close");
  check(wm_session_close(root), "session_close");
  root = 0;
}

static double logprob(float logit, const wm_logit_totals *totals) {
  return (double)logit - totals->max - log(totals->sum);
}

static bool is_end(wm_token token) {
  for (uint32_t i = 0; i < info.end_tokens; i++)
    if (ends[i] == token) return true;
  return false;
}

/* Makes a branch that begins with this token. Its last token is not run: nothing comes after it. */
static void grow(Branch *branch, wm_candidate next, wm_logit_totals totals) {
  check(wm_session_fork(root, &branch->session), "session_fork");
  branch->logprob = 0;
  for (branch->length = 0;;) {
    branch->tokens[branch->length++] = next.token;
    branch->logprob += logprob(next.logit, &totals);
    if (branch->length == token_count || is_end(next.token)) return;
    check(wm_session_forward_top(branch->session, &next.token, 1, 1, 1, &next, &totals), "session_forward_top");
  }
}

static double score(const Branch *branch) { return branch->logprob / branch->length; }

static int better_first(const void *a, const void *b) {
  double x = score(*(const Branch *const *)a), y = score(*(const Branch *const *)b);
  return (x < y) - (x > y);
}

static void add_branch(Text *out, const Branch *branch) {
  char line[40];
  snprintf(line, sizeof line, "%.4f ", score(branch));
  text_add_string(out, line);
  uint32_t length = branch->length - is_end(branch->tokens[branch->length - 1]);
  size_t cap = 64, len;
  char *text = NULL;
  wm_errno error;
  do {
    free(text);
    text = allocate(cap, 1);
    error = wm_model_detokenize(model, branch->tokens, length, text, cap, &len);
    cap = len;
  } while (error == WM_OVERFLOW);
  check(error, "model_detokenize");
  text_add_json(out, text, len);
  text_add_string(out, "\n");
  free(text);
}

/* What it took: the tokens that were run against those that the sessions hold. */
static void add_figures(Text *out, uint32_t prompt_length, const wm_counters *before) {
  uint32_t held = 0, run = prompt_length, length;
  for (uint32_t i = 0; i < branch_count; i++) {
    check(wm_session_length(branches[i].session, &length), "session_length");
    held += length;
    run += length - prompt_length;
  }
  wm_counters after;
  check(wm_counters_read(&after), "counters_read");
  char line[300];
  snprintf(line, sizeof line,
           "%u branches from a prompt of %u tokens hold %u tokens, of which %u were run; %llu submissions, "
           "%llu kernels, %llu bytes copied by the host\n",
           branch_count, prompt_length, held, run, (unsigned long long)(after.submits - before->submits),
           (unsigned long long)(after.dispatches - before->dispatches),
           (unsigned long long)(after.bytes_copied - before->bytes_copied));
  text_add_string(out, line);
}

/* Says on standard error why it returns false. */
static bool search(const char *text, size_t len) {
  close_tree();
  wm_counters before;
  check(wm_counters_read(&before), "counters_read");
  wm_token *prompt = NULL;
  size_t cap = len + 1, n;
  wm_errno error;
  do {
    free(prompt);
    prompt = allocate(cap, sizeof *prompt);
    error = wm_model_tokenize(model, text, len, WM_ADD_BOS, prompt, cap, &n);
    cap = n;
  } while (error == WM_OVERFLOW);
  if (error != WM_SUCCESS || !n || n + token_count > info.context_length) {
    if (error != WM_SUCCESS) fprintf(stderr, "tree: the prompt cannot be tokenized: %s\n", strerror((int)error));
    else if (!n) fputs("tree: the prompt is empty\n", stderr);
    else fprintf(stderr, "tree: %zu tokens and %u more do not fit the context of %u\n", n, token_count, info.context_length);
    free(prompt);
    return false;
  }
  wm_candidate top[WM_MAX_TOP];
  wm_logit_totals totals;
  check(wm_session_open(model, &root), "session_open");
  check(wm_session_forward_top(root, prompt, n, 1, branch_count, top, &totals), "session_forward_top");
  free(prompt);
  const Branch *order[WM_MAX_TOP];
  for (uint32_t i = 0; i < branch_count; i++) {
    grow(&branches[i], top[i], totals);
    order[i] = &branches[i];
  }
  qsort(order, branch_count, sizeof *order, better_first);
  Text out = {0};
  for (uint32_t i = 0; i < branch_count && i < best_count; i++) add_branch(&out, order[i]);
  add_figures(&out, (uint32_t)n, &before);
  write_out(out.data, out.len);
  free(out.data);
  return true;
}

/* ---- As a command, and as an actor -------------------------------------------------------------------------------- */

static void print(const char *data, size_t len) { fwrite(data, 1, len, stdout); }

static void reply(const char *data, size_t len) { check(wm_reply_write(data, len), "reply_write"); }

int main(int argc, char **argv) {
  write_out = print;
  int error = begin(argc, argv);
  if (error) return error;
  if (!prompt_text) return usage(), 2;
  return !search(prompt_text, strlen(prompt_text));
}

/* Before the first message: reads the arguments, of which -p means nothing here, and opens the model. */
__attribute__((export_name("wm_actor_start"))) void actor_start(void) {
  size_t argc, size;
  if (__wasi_args_sizes_get(&argc, &size)) exit(2);
  char **argv = allocate(argc + 1, sizeof *argv), *bytes = allocate(size, 1);
  if (__wasi_args_get((uint8_t **)argv, (uint8_t *)bytes)) exit(2);
  int error = begin((int)argc, argv);
  if (error) exit(error);
  write_out = reply;
}

/* A message is a prompt; a reply without a line: it cannot be used. */
__attribute__((export_name("wm_actor_message"))) void actor_message(void) {
  wm_message_info message;
  check(wm_message_describe(&message), "message_describe");
  if (message.kind != WM_MESSAGE_SENT) return;
  if (message.length > SIZE_MAX) check(WM_TOOBIG, "message");
  size_t len;
  char *text = allocate((size_t)message.length, 1);
  check(wm_message_read(text, (size_t)message.length, &len), "message_read");
  search(text, len);
  free(text);
}
