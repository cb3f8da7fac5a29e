/* A conversation with a language model: the control plane, inside the sandbox.
 *
 * The guest keeps the conversation and the sampler; the host tokenizes and holds the model. The device writes each
 * token's logits into this guest's memory, where the guest samples from them: nothing is copied. A token costs two host
 * calls: wm_session_forward, and one write of its text.
 */
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "wasmetal/sampler.h"
#include "wasmetal/text.h"
#include "wasmetal.h"

#define RECENT 64 /* tokens that the repetition penalty looks back */

static const char USAGE[] =
    "usage: chat [-p PROMPT] [--system TEXT] [--raw] [--greedy] [--max-tokens N] [--seed N] [--temperature T]\n"
    "            [--top-k K] [--top-p P] [--min-p P] [--repeat-penalty R] [--model NAME] [--stats]\n";

typedef struct Options {
  const char *prompt, *system, *model;
  bool raw, greedy, stats;
  uint32_t max_tokens; /* 0: as many as fit */
  Sampler sampler;
} Options;

typedef struct Message {
  const char *role;
  char *content;
  size_t len;
} Message;

typedef struct Chat {
  Options options;
  wm_model model;
  wm_model_info info;
  wm_session session;
  wm_token *ends;
  uint32_t *offsets; /* where each token's bytes begin in pieces, and the end of the last */
  const char *pieces;
  wm_token *tokens; /* what the session holds: context_length places, `length` in use */
  uint32_t length;
  float *logits;
  uint32_t *scratch;
  Message *messages;
  size_t message_count;
  uint32_t prefill_tokens, decode_tokens;
  double prefill_seconds, decode_seconds;
} Chat;

static _Noreturn void fail(const char *what) {
  fprintf(stderr, "chat: %s\n", what);
  exit(1);
}

static void check(wm_errno error, const char *what) {
  if (error == WM_SUCCESS) return;
  fprintf(stderr, "chat: %s: %s\n", what, strerror((int)error));
  exit(1);
}

static void *allocate(size_t count, size_t size) {
  void *memory = calloc(count ? count : 1, size);
  if (!memory) fail("out of memory");
  return memory;
}

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + t.tv_nsec / 1e9;
}

/* ---- The model ---------------------------------------------------------------------------------------------------- */

static void open_model(Chat *chat) {
  const char *name = chat->options.model;
  wm_errno error = wm_model_open(name, strlen(name), &chat->model);
  if (error == WM_NOENT) {
    fprintf(stderr, "chat: no model named '%s' was granted\n", name);
    exit(1);
  }
  check(error, "model_open");
  check(wm_model_describe(chat->model, &chat->info), "model_describe");
  check(wm_session_open(chat->model, &chat->session), "session_open");

  size_t len = chat->info.end_tokens;
  chat->ends = allocate(len, sizeof *chat->ends);
  check(wm_model_end_tokens(chat->model, chat->ends, len, &len), "model_end_tokens");

  wm_model_vocabulary(chat->model, NULL, 0, &len);
  chat->offsets = allocate(len, 1);
  check(wm_model_vocabulary(chat->model, chat->offsets, len, &len), "model_vocabulary");
  chat->pieces = (const char *)(chat->offsets + chat->info.vocab_size + 1);

  chat->tokens = allocate(chat->info.context_length, sizeof *chat->tokens);
  chat->scratch = allocate(chat->info.vocab_size, sizeof *chat->scratch);
  size_t bytes = (chat->info.vocab_size * sizeof(float) + 15) & ~(size_t)15;
  chat->logits = aligned_alloc(16, bytes);
  if (!chat->logits) fail("out of memory");
}

static bool is_end(const Chat *chat, wm_token token) {
  for (uint32_t i = 0; i < chat->info.end_tokens; i++)
    if (chat->ends[i] == token) return true;
  return false;
}

static wm_token *tokenize(Chat *chat, const Text *text, uint32_t flags, size_t *n) {
  /* A token is at least a byte long, and a beginning-of-text token may come before all. */
  size_t cap = text->len + 1;
  wm_token *tokens = allocate(cap, sizeof *tokens);
  wm_errno error = wm_model_tokenize(chat->model, text->data, text->len, flags, tokens, cap, n);
  if (error == WM_OVERFLOW) {
    free(tokens);
    tokens = allocate(*n, sizeof *tokens);
    error = wm_model_tokenize(chat->model, text->data, text->len, flags, tokens, *n, n);
  }
  check(error, "model_tokenize");
  return tokens;
}

/* ---- The conversation --------------------------------------------------------------------------------------------- */

static void remember(Chat *chat, const char *role, const char *content, size_t len) {
  chat->messages = realloc(chat->messages, (chat->message_count + 1) * sizeof *chat->messages);
  if (!chat->messages) fail("out of memory");
  char *copy = allocate(len, 1);
  memcpy(copy, content, len);
  chat->messages[chat->message_count++] = (Message){role, copy, len};
}

/* Drops the oldest question and its answer. False where only the last question is left. */
static bool forget_oldest(Chat *chat) {
  size_t first = chat->options.system ? 1 : 0;
  if (chat->message_count < first + 3) return false;
  free(chat->messages[first].content);
  free(chat->messages[first + 1].content);
  chat->message_count -= 2;
  memmove(chat->messages + first, chat->messages + first + 2, (chat->message_count - first) * sizeof *chat->messages);
  return true;
}

static Text render(Chat *chat) {
  Text json = {0}, prompt = {0};
  text_add_string(&json, "[");
  for (size_t i = 0; i < chat->message_count; i++) {
    text_add_string(&json, i ? ", {\"role\": \"" : "{\"role\": \"");
    text_add_string(&json, chat->messages[i].role);
    text_add_string(&json, "\", \"content\": ");
    text_add_json(&json, chat->messages[i].content, chat->messages[i].len);
    text_add_string(&json, "}");
  }
  text_add_string(&json, "]");
  size_t len = 2 * json.len + 1024;
  wm_errno error;
  do {
    text_room(&prompt, len);
    error = wm_model_apply_template(chat->model, json.data, json.len, WM_GENERATION_PROMPT, prompt.data, prompt.cap, &len);
  } while (error == WM_OVERFLOW);
  check(error, "model_apply_template");
  prompt.len = len;
  free(json.data);
  return prompt;
}

/* The conversation, or for --raw the line itself, as tokens that fit the context with room for a reply. */
static wm_token *prompt_tokens(Chat *chat, const char *line, size_t len, size_t *n) {
  if (chat->options.raw) {
    Text text = {(char *)line, len, len};
    return tokenize(chat, &text, WM_ADD_BOS, n);
  }
  remember(chat, "user", line, len);
  for (;;) {
    Text text = render(chat);
    wm_token *tokens = tokenize(chat, &text, WM_PARSE_SPECIAL, n);
    free(text.data);
    if (*n < chat->info.context_length || !forget_oldest(chat)) return tokens;
    free(tokens);
  }
}

/* ---- The reply ---------------------------------------------------------------------------------------------------- */

static void forward(Chat *chat, const wm_token *tokens, uint32_t n) {
  check(wm_session_forward(chat->session, tokens, n, chat->logits), "session_forward");
  memcpy(chat->tokens + chat->length, tokens, n * sizeof *tokens);
  chat->length += n;
}

/* Brings the session to this prompt, keeping what it holds of it already. */
static void prefill(Chat *chat, const wm_token *tokens, uint32_t n) {
  uint32_t common = 0;
  /* At least one token is run, for its logits. */
  while (common < chat->length && common + 1 < n && chat->tokens[common] == tokens[common]) common++;
  if (common < chat->length) check(wm_session_truncate(chat->session, common), "session_truncate");
  chat->length = common;
  double start = now();
  forward(chat, tokens + common, n - common);
  chat->prefill_tokens += n - common;
  chat->prefill_seconds += now() - start;
}

static void write_all(const char *data, size_t len) {
  while (len) {
    ssize_t written = write(STDOUT_FILENO, data, len);
    if (written < 0) exit(1);
    data += written;
    len -= (size_t)written;
  }
}

/* Streams a token's bytes behind what is held back: line ends that may turn out to be the reply's last. */
static void emit(Text *held, const char *bytes, size_t len) {
  text_add(held, bytes, len);
  size_t ready = held->len;
  while (ready && held->data[ready - 1] == '\n') ready--;
  write_all(held->data, ready);
  memmove(held->data, held->data + ready, held->len - ready);
  held->len -= ready;
}

static wm_token next_token(Chat *chat) {
  uint32_t recent = chat->length < RECENT ? chat->length : RECENT;
  return sample(&chat->options.sampler, chat->logits, chat->info.vocab_size, chat->scratch,
                chat->tokens + chat->length - recent, recent);
}

static void answer(Chat *chat, const char *line, size_t len) {
  size_t n;
  wm_token *prompt = prompt_tokens(chat, line, len, &n);
  if (!n) fail("the prompt is empty");
  if (n > chat->info.context_length) {
    fprintf(stderr, "chat: the prompt has %zu tokens; the model's context is %u\n", n, chat->info.context_length);
    exit(1);
  }
  prefill(chat, prompt, (uint32_t)n);
  free(prompt);

  Text reply = {0}, held = {0};
  double start = now();
  for (uint32_t count = 1;; count++) {
    wm_token token = next_token(chat);
    if (is_end(chat, token)) break;
    const char *bytes = chat->pieces + chat->offsets[token];
    size_t bytes_len = chat->offsets[token + 1] - chat->offsets[token];
    emit(&held, bytes, bytes_len);
    text_add(&reply, bytes, bytes_len);
    if (count == chat->options.max_tokens || chat->length == chat->info.context_length) break;
    forward(chat, &token, 1);
    chat->decode_tokens++;
  }
  chat->decode_seconds += now() - start;
  write_all("\n", 1);
  if (!chat->options.raw) remember(chat, "assistant", reply.data, reply.len);
  free(reply.data);
  free(held.data);
}

/* ---- The command line --------------------------------------------------------------------------------------------- */

static _Noreturn void usage(void) {
  fputs(USAGE, stderr);
  exit(2);
}

static double number(const char *text, double least, double most) {
  char *end;
  double value = strtod(text, &end);
  if (end == text || *end || !(value >= least && value <= most)) usage();
  return value;
}

static Options parse(int argc, char **argv) {
  Options o = {.model = "default", .sampler = {.temperature = 0.7f, .top_k = 40, .top_p = 0.95f, .min_p = 0.05f,
                                               .repeat_penalty = 1}};
  if (getentropy(&o.sampler.seed, sizeof o.sampler.seed)) fail("no random seed");
  for (int i = 1; i < argc; i++) {
    const char *name = argv[i];
    if (!strcmp(name, "--raw")) { o.raw = true; continue; }
    if (!strcmp(name, "--greedy")) { o.greedy = true; continue; }
    if (!strcmp(name, "--stats")) { o.stats = true; continue; }
    if (++i == argc) usage();
    const char *value = argv[i];
    if (!strcmp(name, "-p")) o.prompt = value;
    else if (!strcmp(name, "--system")) o.system = value;
    else if (!strcmp(name, "--model")) o.model = value;
    else if (!strcmp(name, "--max-tokens")) o.max_tokens = (uint32_t)number(value, 0, UINT32_MAX);
    else if (!strcmp(name, "--seed")) o.sampler.seed = (uint64_t)number(value, 0, 0x1p53);
    else if (!strcmp(name, "--temperature")) o.sampler.temperature = (float)number(value, 0, 100);
    else if (!strcmp(name, "--top-k")) o.sampler.top_k = (uint32_t)number(value, 0, UINT32_MAX);
    else if (!strcmp(name, "--top-p")) o.sampler.top_p = (float)number(value, 0, 1);
    else if (!strcmp(name, "--min-p")) o.sampler.min_p = (float)number(value, 0, 1);
    else if (!strcmp(name, "--repeat-penalty")) o.sampler.repeat_penalty = (float)number(value, 0.01, 100);
    else usage();
  }
  if (o.greedy) o.sampler.temperature = 0;
  return o;
}

/* Reads lines until the end of the input; the prompt goes to standard error, so that standard output holds replies only. */
static void converse(Chat *chat) {
  char *line = NULL;
  size_t cap = 0;
  for (;;) {
    fputs("> ", stderr);
    ssize_t len = getline(&line, &cap, stdin);
    if (len < 0) break;
    while (len && (line[len - 1] == '\n' || line[len - 1] == '\r')) len--;
    if (len) answer(chat, line, (size_t)len);
  }
  fputs("\n", stderr);
  free(line);
}

int main(int argc, char **argv) {
  Chat chat = {.options = parse(argc, argv)};
  const Options *o = &chat.options;
  open_model(&chat);
  if (!o->raw && !chat.info.chat_template) fail("the model has no chat template; use --raw");
  if (o->system && !o->raw) remember(&chat, "system", o->system, strlen(o->system));
  if (o->prompt) answer(&chat, o->prompt, strlen(o->prompt));
  else converse(&chat);
  if (o->stats)
    fprintf(stderr,
            "{\"prefill_tokens\": %u, \"prefill_seconds\": %.6f, \"decode_tokens\": %u, \"decode_seconds\": %.6f}\n",
            chat.prefill_tokens, chat.prefill_seconds, chat.decode_tokens, chat.decode_seconds);
  return 0;
}
