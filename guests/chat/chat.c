#include "chat.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define RECENT 64 /* tokens that the repetition penalty looks back */
#define BURST 128  /* tokens of a call of wm_session_generate, at most */

static const char *const ROLE_NAMES[ROLES] = {"system", "user", "assistant"};

static char reason[256];

__attribute__((format(printf, 1, 2))) static bool refuse(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(reason, sizeof reason, format, arguments);
  va_end(arguments);
  fprintf(stderr, "chat: %s\n", reason);
  return false;
}

const char *chat_reason(void) { return reason; }

static void check(wm_errno error, const char *what) {
  if (error == WM_SUCCESS) return;
  refuse("%s: %s", what, strerror((int)error));
  exit(1);
}

static void *allocate(size_t count, size_t size) {
  void *memory = calloc(count ? count : 1, size);
  if (!memory) {
    refuse("out of memory");
    exit(1);
  }
  return memory;
}

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + t.tv_nsec / 1e9;
}

/* ---- The model ---------------------------------------------------------------------------------------------------- */

/* How many of the likeliest tokens the sampler chooses from, if the device can find so many; 0: it wants all logits. */
static uint32_t candidates(const Chat *chat) {
  const Sampler *s = &chat->options.sampler;
  uint32_t k = s->repeat_penalty != 1 ? 0 : s->temperature <= 0 ? 1 : s->top_k;
  if (k > chat->info.vocab_size) k = chat->info.vocab_size;
  return k <= WM_MAX_TOP ? k : 0;
}

static bool open_model(const char *name, wm_model *model, wm_model_info *info) {
  wm_errno error = wm_model_open(name, strlen(name), model);
  if (error == WM_NOENT) return refuse("no model named '%s' was granted", name);
  check(error, "model_open");
  check(wm_model_describe(*model, info), "model_describe");
  return true;
}

static bool open_draft_model(Chat *chat, const char *name) {
  wm_model model;
  wm_model_info info;
  if (!open_model(name, &model, &info)) return false;
  if (info.vocab_size != chat->info.vocab_size)
    return refuse("the draft model '%s' has %u tokens in its vocabulary, and the model has %u", name, info.vocab_size,
                  chat->info.vocab_size);
  chat->drafting.context_length = info.context_length;
  check(wm_session_open(model, &chat->drafting.session), "session_open");
  return true;
}

bool chat_open(Chat *chat) {
  const Options *options = &chat->options;
  if (!open_model(options->model, &chat->model, &chat->info)) return false;
  if (!options->raw && !chat->info.chat_template) return refuse("the model has no chat template; use --raw");
  if (options->draft_tokens && !candidates(chat))
    return refuse("--draft-tokens needs --greedy or a --top-k of 1 to %u, and no --repeat-penalty", WM_MAX_TOP);
  check(wm_session_open(chat->model, &chat->session), "session_open");
  if (options->draft_tokens && options->draft_model && !open_draft_model(chat, options->draft_model)) return false;

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
  if (!chat->logits) check(WM_NOMEM, "logits");

  /* Random, so that no message can hold it. */
  uint64_t random;
  if (getentropy(&random, sizeof random)) check(WM_IO, "getentropy");
  snprintf(chat->placeholder, sizeof chat->placeholder, "wm%016llx", (unsigned long long)random);

  const char *system = options->system;
  return !system || options->raw || chat_set_system(chat, system, strlen(system));
}

static bool is_end(const Chat *chat, wm_token token) {
  for (uint32_t i = 0; i < chat->info.end_tokens; i++)
    if (chat->ends[i] == token) return true;
  return false;
}

typedef struct Tokens {
  wm_token *data;
  size_t len;
} Tokens;

/* Adds a text's tokens. */
static wm_errno tokenize(const Chat *chat, const char *text, size_t len, uint32_t flags, Tokens *out) {
  /* A token is at least a byte long, and a beginning-of-text token may come before all. */
  size_t cap = len + 1, n;
  wm_errno error;
  do {
    out->data = realloc(out->data, (out->len + cap) * sizeof *out->data);
    if (!out->data) check(WM_NOMEM, "model_tokenize");
    error = wm_model_tokenize(chat->model, text, len, flags, out->data + out->len, cap, &n);
    cap = n;
  } while (error == WM_OVERFLOW);
  if (error == WM_SUCCESS) out->len += n;
  return error;
}

/* ---- The conversation --------------------------------------------------------------------------------------------- */

/* Whether the text would give other tokens if control tokens that it spells out were taken for those. */
static bool spells_token(const Chat *chat, const Text *text) {
  Tokens plain = {0}, special = {0};
  bool same = tokenize(chat, text->data, text->len, 0, &plain) == WM_SUCCESS &&
              tokenize(chat, text->data, text->len, WM_PARSE_SPECIAL, &special) == WM_SUCCESS &&
              plain.len == special.len && !memcmp(plain.data, special.data, plain.len * sizeof *plain.data);
  free(plain.data);
  free(special.data);
  return !same;
}

static void insert(Chat *chat, size_t at, Role role, const char *text, size_t len) {
  chat->messages = realloc(chat->messages, (chat->message_count + 1) * sizeof *chat->messages);
  if (!chat->messages) check(WM_NOMEM, "messages");
  memmove(chat->messages + at + 1, chat->messages + at, (chat->message_count - at) * sizeof *chat->messages);
  chat->message_count++;
  Message *message = &chat->messages[at];
  *message = (Message){.role = role};
  text_add_utf8(&message->content, text, len);
  message->spells_token = spells_token(chat, &message->content);
}

static void drop(Chat *chat, size_t from, size_t to) {
  if (from == to) return;
  for (size_t i = from; i < to; i++) free(chat->messages[i].content.data);
  memmove(chat->messages + from, chat->messages + to, (chat->message_count - to) * sizeof *chat->messages);
  chat->message_count -= to - from;
}

static size_t first_question(const Chat *chat) {
  return chat->message_count && chat->messages[0].role == SYSTEM ? 1 : 0;
}

/* Drops the oldest question and its answer. False if only the last question is left. */
static bool forget_oldest(Chat *chat) {
  size_t first = first_question(chat);
  if (chat->message_count < first + 3) return false;
  drop(chat, first, first + 2);
  return true;
}

bool chat_set_system(Chat *chat, const char *text, size_t len) {
  if (chat->options.raw) return refuse("--raw has no messages");
  drop(chat, 0, first_question(chat));
  if (len) insert(chat, 0, SYSTEM, text, len);
  return true;
}

bool chat_add(Chat *chat, Role role, const char *text, size_t len) {
  if (chat->options.raw) return refuse("--raw has no messages");
  if (role >= ROLES) return refuse("no role has the number %u", (unsigned)role);
  insert(chat, chat->message_count, role, text, len);
  return true;
}

/* Keeps only the session's first n tokens. */
static void truncate_to(Chat *chat, uint32_t n) {
  if (n < chat->length) check(wm_session_truncate(chat->session, n), "session_truncate");
  chat->length = n;
  check(drafting_truncate(&chat->drafting, n), "session_truncate");
}

void chat_forget(Chat *chat, bool all) {
  chat_end(chat);
  drop(chat, all ? 0 : first_question(chat), chat->message_count);
  truncate_to(chat, 0);
}

void chat_restart(Chat *chat) {
  chat_end(chat);
  drop(chat, 0, chat->message_count);
}

static void add_messages(const Chat *chat, Text *json, bool placeholders) {
  text_add_string(json, "[");
  for (size_t i = 0; i < chat->message_count; i++) {
    const Message *message = &chat->messages[i];
    text_add_string(json, i ? ", {\"role\": \"" : "{\"role\": \"");
    text_add_string(json, ROLE_NAMES[message->role]);
    text_add_string(json, "\", \"content\": ");
    if (placeholders && message->spells_token) {
      char placeholder[40];
      int len = snprintf(placeholder, sizeof placeholder, "%s%08zx", chat->placeholder, i);
      text_add_json(json, placeholder, (size_t)len);
    } else {
      text_add_json(json, message->content.data, message->content.len);
    }
    text_add_string(json, "}");
  }
  text_add_string(json, "]");
}

void chat_messages(const Chat *chat, Text *json) { add_messages(chat, json, false); }

static wm_errno render(const Chat *chat, Text *prompt) {
  Text json = {0};
  add_messages(chat, &json, true);
  size_t len = 2 * json.len + 1024;
  wm_errno error;
  do {
    text_room(prompt, len);
    error = wm_model_apply_template(chat->model, json.data, json.len, WM_GENERATION_PROMPT, prompt->data, prompt->cap, &len);
  } while (error == WM_OVERFLOW);
  if (error == WM_SUCCESS) prompt->len = len;
  free(json.data);
  return error;
}

/* The tokens of a rendered template. Only the template's own control tokens become those: what a message spells out
 * stays text. A message without such spellings is tokenized together with what surrounds it, as models are trained. */
static wm_errno tokenize_rendered(const Chat *chat, const Text *prompt, Tokens *out) {
  const char *at = prompt->data, *end = prompt->data + prompt->len;
  size_t prefix = strlen(chat->placeholder);
  wm_errno error = WM_SUCCESS;
  while (error == WM_SUCCESS && at < end) {
    const char *found = memmem(at, (size_t)(end - at), chat->placeholder, prefix);
    if (found && (size_t)(end - found) < prefix + 8) found = NULL;
    size_t len = (size_t)((found ? found : end) - at);
    if (len) error = tokenize(chat, at, len, WM_PARSE_SPECIAL, out);
    if (!found) break;
    char digits[9] = {0};
    memcpy(digits, found + prefix, 8);
    size_t i = strtoul(digits, NULL, 16);
    if (i >= chat->message_count) return WM_INVAL;
    const Text *content = &chat->messages[i].content;
    if (error == WM_SUCCESS) error = tokenize(chat, content->data, content->len, 0, out);
    at = found + prefix + 8;
  }
  return error;
}

/* The conversation, or for --raw the text itself, as tokens that fit the context with room for an answer. */
static bool prompt_tokens(Chat *chat, const char *text, size_t len, Tokens *out) {
  if (chat->options.raw) {
    wm_errno error = tokenize(chat, text, len, WM_ADD_BOS, out);
    if (error != WM_SUCCESS) return refuse("the prompt cannot be tokenized: %s", strerror((int)error));
  } else {
    do {
      out->len = 0;
      Text prompt = {0};
      wm_errno error = render(chat, &prompt);
      if (error != WM_SUCCESS) refuse("the model's chat template refuses the conversation: %s", strerror((int)error));
      else if ((error = tokenize_rendered(chat, &prompt, out)) != WM_SUCCESS)
        refuse("the conversation cannot be tokenized: %s", strerror((int)error));
      free(prompt.data);
      if (error != WM_SUCCESS) return false;
    } while (out->len >= chat->info.context_length && forget_oldest(chat));
  }
  if (!out->len) return refuse("the prompt is empty");
  if (out->len > chat->info.context_length)
    return refuse("the prompt has %zu tokens; the model's context is %u", out->len, chat->info.context_length);
  return true;
}

/* ---- The answer --------------------------------------------------------------------------------------------------- */

/* Appends the tokens, and has what the sampler chooses from after each of the last `rows`. Without candidates(), that is
 * the last. */
static void forward(Chat *chat, const wm_token *tokens, uint32_t n, uint32_t rows) {
  uint32_t k = candidates(chat);
  if (k) {
    wm_logit_totals totals[WM_MAX_TOP_ROWS];
    check(wm_session_forward_top(chat->session, tokens, n, rows, k, chat->top, totals), "session_forward_top");
  } else {
    check(wm_session_forward(chat->session, tokens, n, chat->logits), "session_forward");
  }
  memcpy(chat->tokens + chat->length, tokens, n * sizeof *tokens);
  chat->length += n;
}

/* Draws the answer's next token, from what the last pass gave for this row. */
static void draw(Chat *chat, uint32_t row) {
  Sampler *sampler = &chat->options.sampler;
  uint32_t k = candidates(chat);
  if (k) {
    chat->next = drafting_draw(&chat->drafting, sampler, row, chat->top + row * k, k);
  } else {
    uint32_t recent = chat->length < RECENT ? chat->length : RECENT;
    chat->next = sample(sampler, chat->logits, chat->info.vocab_size, chat->scratch,
                        chat->tokens + chat->length - recent, recent);
  }
}

/* Brings the session to this prompt, keeping what it holds of it already, and draws the answer's first token. */
static void prefill(Chat *chat, const wm_token *tokens, uint32_t n) {
  uint32_t common = 0;
  /* At least one token is run, for its logits. */
  while (common < chat->length && common + 1 < n && chat->tokens[common] == tokens[common]) common++;
  truncate_to(chat, common);
  double start = now();
  chat->drafting.count = 0;
  forward(chat, tokens + common, n - common, 1);
  check(drafting_prefill(&chat->drafting, chat->tokens, chat->length), "session_forward_top");
  draw(chat, 0);
  chat->prefill_tokens += n - common;
  chat->prefill_seconds += now() - start;
}

/* Adds a token to the answer. */
static void say(Chat *chat, wm_token token) {
  const char *bytes = chat->pieces + chat->offsets[token];
  size_t len = chat->offsets[token + 1] - chat->offsets[token];
  text_add(&chat->held, bytes, len);
  text_add(&chat->reply, bytes, len);
  chat->reply_tokens++;
}

/* Writes what has been said, but for line ends that may turn out to be the answer's last. */
static void flush(Chat *chat) {
  Text *held = &chat->held;
  size_t ready = held->len;
  while (!chat->options.exact && ready && held->data[ready - 1] == '\n') ready--;
  if (!ready) return;
  chat->write(held->data, ready);
  memmove(held->data, held->data + ready, held->len - ready);
  held->len -= ready;
}

bool chat_ask(Chat *chat, const char *text, size_t len) {
  chat_end(chat);
  if (!chat->options.raw) chat_add(chat, USER, text, len);
  Tokens prompt = {0};
  bool fits = prompt_tokens(chat, text, len, &prompt);
  if (fits) prefill(chat, prompt.data, (uint32_t)prompt.len);
  else if (!chat->options.raw) drop(chat, chat->message_count - 1, chat->message_count);
  free(prompt.data);
  chat->reply_tokens = 0;
  chat->cut = false;
  return chat->answering = fits;
}

/* A draft of what follows the session's tokens and one that is still to be run: returns its length. */
static uint32_t draft(Chat *chat, wm_token token) {
  uint32_t most = chat->options.draft_tokens, room = chat->info.context_length - chat->length - 1;
  if (most > room) most = room;
  /* The answer's last token is not run: it is not one of a draft. */
  uint32_t left = chat->options.max_tokens - chat->reply_tokens - 1;
  if (chat->options.max_tokens && most > left) most = left;
  if (!most) return chat->drafting.count = 0;
  chat->tokens[chat->length] = token;
  check(drafting_propose(&chat->drafting, &chat->options.sampler, candidates(chat), chat->tokens, chat->length + 1, most),
        "session_forward_top");
  for (uint32_t i = 0; i + 1 < chat->drafting.count; i++)
    if (is_end(chat, chat->drafting.draft[i])) chat->drafting.count = i + 1; /* nothing follows */
  return chat->drafting.count;
}

/* Runs the token and a draft of what follows, says what is accepted of the draft, and draws the token after that. */
static void step(Chat *chat, wm_token token) {
  uint32_t n = draft(chat, token), length = chat->length + 1, kept = 0;
  wm_token tokens[1 + MAX_DRAFT] = {token};
  memcpy(tokens + 1, chat->drafting.draft, n * sizeof *tokens);
  forward(chat, tokens, 1 + n, 1 + n);
  draw(chat, 0);
  while (kept < n && chat->next == tokens[1 + kept]) {
    chat->accepted_tokens++;
    if (is_end(chat, chat->next)) break;
    say(chat, chat->next);
    draw(chat, ++kept);
  }
  chat->drafted_tokens += n;
  chat->decode_tokens += 1 + kept;
  truncate_to(chat, length + kept);
}

/* How many tokens the host may choose at once: 0 if the sampler needs more than the likeliest, or drafts are made. */
static uint32_t burst(const Chat *chat) {
  if (!candidates(chat) || chat->options.draft_tokens) return 0;
  uint32_t room = chat->info.context_length - chat->length, most = room < BURST ? room : BURST;
  uint32_t left = chat->options.max_tokens - chat->reply_tokens;
  return chat->options.max_tokens && most > left ? left : most;
}

/* Runs the token and up to n - 1 that follow it, says those, and draws the token after them. */
static void generate(Chat *chat, wm_token token, uint32_t n) {
  Sampler *sampler = &chat->options.sampler;
  wm_sampling how = {.seed = sampler->seed, .temperature = sampler->temperature, .top_k = candidates(chat),
                     .top_p = sampler->top_p, .min_p = sampler->min_p};
  wm_token *tokens = chat->tokens + chat->length, out[BURST];
  size_t count = 0;
  tokens[0] = token;
  check(wm_session_generate(chat->session, tokens, 1, &how, chat->ends, chat->info.end_tokens, out, n, &count),
        "session_generate");
  sampler->seed = how.seed;
  for (size_t i = 0; i + 1 < count; i++) {
    say(chat, out[i]);
    tokens[1 + i] = out[i];
  }
  chat->next = out[count - 1];
  chat->length += (uint32_t)count;
  chat->decode_tokens += (uint32_t)count;
}

/* The next tokens of the answer. False if those were the last. */
static bool decode(Chat *chat) {
  wm_token token = chat->next;
  if (is_end(chat, token)) return false;
  say(chat, token);
  flush(chat);
  chat->cut = chat->reply_tokens == chat->options.max_tokens || chat->length == chat->info.context_length;
  if (chat->cut) return false;
  uint32_t n = burst(chat);
  if (n) generate(chat, token, n);
  else step(chat, token);
  flush(chat);
  return true;
}

bool chat_continue(Chat *chat, double seconds) {
  double start = now();
  bool more = chat->answering;
  /* The clock is asked after 1, 2, 4, 8, ... calls: to ask is a call of the host, too. */
  for (uint32_t n = 1; more && (more = decode(chat)); n++)
    if (seconds != INFINITY && !(n & (n - 1)) && now() - start >= seconds) break;
  chat->decode_seconds += now() - start;
  if (!more) chat_end(chat);
  return more;
}

void chat_end(Chat *chat) {
  if (!chat->answering) return;
  chat->answering = false;
  if (!chat->options.exact) chat->write("\n", 1);
  if (!chat->options.raw) chat_add(chat, ASSISTANT, chat->reply.data, chat->reply.len);
  chat->reply.len = chat->held.len = 0;
}

void chat_fork(const Chat *chat, uint64_t seed, Chat *fork) {
  *fork = *chat;
  check(wm_session_fork(chat->session, &fork->session), "session_fork");
  fork->tokens = allocate(chat->info.context_length, sizeof *fork->tokens);
  memcpy(fork->tokens, chat->tokens, chat->length * sizeof *fork->tokens);
  fork->messages = NULL;
  fork->message_count = 0;
  fork->reply = fork->held = (Text){0};
  fork->options.sampler.seed = seed;
  /* What the first token was drawn from is gone: the prompt's last token gives it again. */
  wm_token last = chat->tokens[chat->length - 1];
  truncate_to(fork, chat->length - 1);
  forward(fork, &last, 1, 1);
  draw(fork, 0);
}

void chat_close_fork(Chat *fork) {
  check(wm_session_close(fork->session), "session_close");
  drop(fork, 0, fork->message_count);
  free(fork->messages);
  free(fork->tokens);
  free(fork->reply.data);
  free(fork->held.data);
}

void chat_stats(const Chat *chat, Text *json) {
  char line[384];
  int len = snprintf(line, sizeof line,
                     "{\"context_tokens\": %u, \"context_length\": %u, \"prefill_tokens\": %u, \"prefill_seconds\": %.6f, "
                     "\"decode_tokens\": %u, \"decode_seconds\": %.6f, \"drafted_tokens\": %u, \"accepted_tokens\": %u}\n",
                     chat->length, chat->info.context_length, chat->prefill_tokens, chat->prefill_seconds,
                     chat->decode_tokens, chat->decode_seconds, chat->drafted_tokens, chat->accepted_tokens);
  text_add(json, line, (size_t)len);
}
