/* Runs C code of guests (the library, chat, the replies of complete) on inputs from standard input, for the sanitizers.
 *
 * An input is its length (4 bytes, little-endian) and its bytes, the first of which chooses what is run. Prints how many
 * inputs there were. Every array has exactly the size that the code may use. */
#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "chat/chat.h"
#include "complete/reply.h"
#include "wasmetal/json.h"

/* ---- The bytes of an input, as numbers ------------------------------------------------------------------------------ */

static const uint8_t *next, *end;

static uint8_t byte(void) { return next < end ? *next++ : 0; }

static uint32_t word(void) {
  uint32_t value = 0;
  for (int i = 0; i < 4; i++) value = value << 8 | byte();
  return value;
}

static float real(void) {
  static const float odd[] = {0, -0.0f, 1, -1, INFINITY, -INFINITY, NAN, 1e38f, -1e38f, 1e-45f, 0.5f, 3};
  uint8_t kind = byte();
  return kind < 64 ? odd[kind % 12] : (float)(int8_t)byte() / 16;
}

static void *block(size_t count, size_t size) {
  void *made = malloc(count * size); /* of 0 bytes, too: an access to it is an error */
  assert(made);
  return made;
}

/* A block with some of the next bytes. */
static char *bytes(size_t *len) {
  *len = byte() % 64;
  if (*len > (size_t)(end - next)) *len = (size_t)(end - next);
  char *made = block(*len, 1);
  if (*len) memcpy(made, next, *len);
  next += *len;
  return made;
}

/* ---- sampler.c ------------------------------------------------------------------------------------------------------ */

static void run_sampler(void) {
  uint32_t n = 1 + word() % 300;
  size_t recent_n = byte() % 65;
  Sampler s = {real(), byte() % 2 ? byte() : word(), real(), real(), real(), word()};
  float *logits = block(n, sizeof *logits);
  uint32_t *scratch = block(n, sizeof *scratch), *recent = block(recent_n, sizeof *recent);
  for (uint32_t i = 0; i < n; i++) logits[i] = real();
  for (size_t i = 0; i < recent_n; i++) recent[i] = byte() % 8 ? byte() : word();
  assert(sample(&s, logits, n, scratch, recent, recent_n) < n);
  free(logits), free(scratch), free(recent);
}

/* ---- speculate.c ---------------------------------------------------------------------------------------------------- */

/* A distribution as the sampler makes it of random logits, in blocks to be freed. */
static Choices some_choices(void) {
  uint32_t n = 1 + byte() % 64;
  Sampler s = {real(), byte(), real(), real(), real(), 0};
  float *logits = block(n, sizeof *logits);
  uint32_t *ids = block(n, sizeof *ids), *recent = block(2, sizeof *recent);
  double *probabilities = block(n, sizeof *probabilities);
  for (uint32_t i = 0; i < n; i++) logits[i] = real();
  recent[0] = byte(), recent[1] = word();
  uint32_t kept = sampler_distribution(&s, logits, n, ids, probabilities, recent, 2);
  assert(kept && kept <= n);
  for (uint32_t i = 0; i < kept; i++) {
    assert(ids[i] < n);
    assert(!isfinite(s.temperature) || (probabilities[i] > 0 && probabilities[i] <= 1));
  }
  free(logits), free(recent);
  return (Choices){kept, ids, probabilities};
}

static int holds(const Choices *choices, uint32_t token) {
  for (uint32_t i = 0; i < choices->n; i++)
    if (choices->tokens[i] == token) return 1;
  return 0;
}

static void run_speculate(void) {
  Choices target = some_choices(), draft = some_choices();
  uint64_t seed = word();
  uint32_t token = speculate_draw(&draft, &seed);
  assert(holds(&draft, token));
  assert(holds(&target, speculate_verify(&target, &draft, byte() % 8 ? token : word(), &seed)));
  free((void *)target.tokens), free((void *)target.probabilities);
  free((void *)draft.tokens), free((void *)draft.probabilities);

  uint32_t n = byte() % 64, most = byte() % 16;
  uint32_t *tokens = block(n, sizeof *tokens), *guess = block(most, sizeof *guess);
  for (uint32_t i = 0; i < n; i++) tokens[i] = byte() % 4;
  uint32_t count = speculate_lookup(tokens, n, byte() % 8 ? byte() % 5 : word(), guess, most);
  assert(count == 0 || count == most);
  for (uint32_t i = 0; i < count; i++) assert(guess[i] < 4);
  free(tokens), free(guess);
}

/* ---- text.c --------------------------------------------------------------------------------------------------------- */

static void run_text(void) {
  Text text = {0}, again = {0}, json = {0};
  while (next < end) {
    size_t len;
    char *data = bytes(&len);
    if (byte() % 2) text_add_utf8(&text, data, len);
    else text_add_json(&json, data, len);
    free(data);
  }
  text_add_utf8(&again, text.data, text.len); /* what is UTF-8 stays as it is */
  assert(again.len == text.len && (!text.len || !memcmp(again.data, text.data, text.len)));
  for (size_t i = 0; i < json.len; i++) assert((unsigned char)json.data[i] >= 0x20);
  free(text.data), free(again.data), free(json.data);
}

/* ---- chat.c, with a host that answers as the input says ------------------------------------------------------------- */

/* Models 1 and 3, the draft model, have one session each: 2 and 4. */
enum { VOCABULARY = 260, CONTEXT = 96, DRAFT_CONTEXT = 40 };
static uint32_t session_lengths[5];

wm_errno wm_model_open(const char *name, size_t len, wm_model *model) {
  assert(len == strlen(name));
  *model = *name == 'd' ? 3 : 1;
  return WM_SUCCESS;
}

wm_errno wm_model_describe(wm_model model, wm_model_info *info) {
  assert(model == 1 || model == 3);
  uint32_t context = model == 1 ? CONTEXT : DRAFT_CONTEXT;
  *info = (wm_model_info){.vocab_size = VOCABULARY, .context_length = context, .end_tokens = 2, .chat_template = 1};
  return WM_SUCCESS;
}

wm_errno wm_model_end_tokens(wm_model model, wm_token *out, size_t cap, size_t *needed) {
  assert(model == 1 && cap == 2);
  out[0] = 256, out[1] = 257;
  *needed = 2;
  return WM_SUCCESS;
}

/* Tokens are bytes; 256 to 258 have longer pieces, and 259 none. */
wm_errno wm_model_vocabulary(wm_model model, uint32_t *out, size_t cap, size_t *needed) {
  static const char longer[] = "<|end|><|im_end|>\n\n\n";
  const uint32_t ends[] = {7, 17, 20, 20};
  assert(model == 1);
  *needed = sizeof(uint32_t) * (VOCABULARY + 1) + 256 + 20;
  if (cap < *needed) return WM_OVERFLOW;
  uint32_t *offsets = out;
  char *pieces = (char *)(offsets + VOCABULARY + 1);
  for (uint32_t i = 0; i <= 256; i++) offsets[i] = i;
  for (uint32_t i = 0; i < 256; i++) pieces[i] = (char)i;
  for (uint32_t i = 0; i < 4; i++) offsets[257 + i] = 256 + ends[i];
  memcpy(pieces + 256, longer, 20);
  return WM_SUCCESS;
}

wm_errno wm_model_tokenize(
    wm_model model, const char *text, size_t len, uint32_t flags, wm_token *out, size_t cap, size_t *needed) {
  assert(model == 1);
  if (byte() == 0xff) return WM_INVAL;
  size_t n = 0;
  for (size_t i = 0; i < len; n++) {
    int special = flags & WM_PARSE_SPECIAL && len - i >= 7 && !memcmp(text + i, "<|end|>", 7);
    if (n < cap) out[n] = special ? 256 : (unsigned char)text[i];
    i += special ? 7 : 1;
  }
  *needed = n;
  return n > cap ? WM_OVERFLOW : WM_SUCCESS;
}

/* The messages themselves, cut off or repeated. */
wm_errno wm_model_apply_template(
    wm_model model, const char *json, size_t len, uint32_t flags, char *out, size_t cap, size_t *needed) {
  assert(model == 1 && flags == WM_GENERATION_PROMPT);
  uint8_t how = byte();
  if (how == 0xff) return WM_INVAL;
  size_t n = how < 128 ? len : how < 160 ? len * how / 160 : how < 200 ? 5 * len : 0;
  *needed = n;
  if (n > cap) return WM_OVERFLOW;
  for (size_t i = 0; i < n; i++) out[i] = json[i % len];
  return WM_SUCCESS;
}

wm_errno wm_session_open(wm_model model, wm_session *session) {
  assert(model == 1 || model == 3);
  *session = model + 1;
  session_lengths[*session] = 0;
  return WM_SUCCESS;
}

wm_errno wm_session_fork(wm_session session, wm_session *copy) {
  (void)session, (void)copy;
  return WM_NOTSUP; /* the conversations here are not forked */
}

wm_errno wm_session_close(wm_session session) {
  (void)session;
  return WM_SUCCESS;
}

wm_errno wm_session_truncate(wm_session session, uint32_t length) {
  assert((session == 2 || session == 4) && length <= session_lengths[session]);
  session_lengths[session] = length;
  return WM_SUCCESS;
}

wm_errno wm_session_forward(wm_session session, const wm_token *tokens, size_t n, float *logits) {
  assert(session == 2 && n && session_lengths[session] + n <= CONTEXT);
  for (size_t i = 0; i < n; i++) assert(tokens[i] < VOCABULARY);
  for (uint32_t i = 0; i < VOCABULARY; i++) logits[i] = (float)(byte() % 16);
  session_lengths[session] += (uint32_t)n;
  return WM_SUCCESS;
}

wm_errno wm_session_forward_top(
    wm_session session, const wm_token *tokens, size_t n, uint32_t rows, uint32_t k, wm_candidate *top,
    wm_logit_totals *totals) {
  assert((session == 2 || session == 4) && n && session_lengths[session] + n <= (session == 2 ? CONTEXT : DRAFT_CONTEXT));
  assert(rows && rows <= n && rows <= WM_MAX_TOP_ROWS && k && k <= WM_MAX_TOP && k <= VOCABULARY);
  for (size_t i = 0; i < n; i++) assert(tokens[i] < VOCABULARY);
  for (uint32_t row = 0; row < rows; row++) {
    uint32_t likeliest = byte() % 16 ? byte() % 4 : byte(); /* few, so that drafts are often right */
    for (uint32_t i = 0; i < k; i++) top[row * k + i] = (wm_candidate){(likeliest + i) % VOCABULARY, (float)(k - i)};
    totals[row] = (wm_logit_totals){(float)k, 2};
  }
  session_lengths[session] += (uint32_t)n;
  return WM_SUCCESS;
}

wm_errno wm_session_generate(
    wm_session session, const wm_token *tokens, size_t n, wm_sampling *sampling, const wm_token *stops, size_t n_stops,
    wm_token *out, size_t cap, size_t *len) {
  assert(session == 2 && n && cap && session_lengths[session] + n <= CONTEXT);
  assert(sampling->top_k && sampling->top_k <= WM_MAX_TOP);
  for (size_t i = 0; i < n; i++) assert(tokens[i] < VOCABULARY);
  session_lengths[session] += (uint32_t)n;
  for (*len = 0;;) {
    wm_token token = out[(*len)++] = byte() % 16 ? byte() % 4 : (byte() + 4) % VOCABULARY;
    for (size_t i = 0; i < n_stops; i++)
      if (token == stops[i]) return WM_SUCCESS;
    if (*len == cap || session_lengths[session] == CONTEXT) return WM_SUCCESS;
    session_lengths[session]++;
  }
}

static void write_out(const char *data, size_t len) { fwrite(data, 1, len, stdout); }

static void run_chat(void) {
  Chat chat = {.options = {.model = "m", .draft_model = byte() % 2 ? "d" : 0, .draft_tokens = byte() % 16, .raw = byte() % 4 == 0, .max_tokens = byte() % 8, .system = byte() % 2 ? "s" : 0,
                           .sampler = {real(), byte(), real(), real(), byte() % 2 ? 1.1f : 1, word()}}};
  chat.write = write_out;
  if (!chat_open(&chat)) return;
  Text out = {0};
  while (next < end) {
    size_t len;
    uint8_t what = byte();
    char *data = bytes(&len);
    switch (what % 8) {
      case 0: case 1: chat_ask(&chat, data, len); break;
      case 2: case 3: chat_continue(&chat, what & 8 ? 0 : INFINITY); break;
      case 4: chat_add(&chat, (Role)(what / 8 % 4), data, len); break;
      case 5: chat_set_system(&chat, data, len); break;
      case 6: chat_forget(&chat, what & 8); break;
      case 7: chat_end(&chat), chat_messages(&chat, &out), chat_stats(&chat, &out); break;
    }
    free(data);
    assert(chat.length == session_lengths[2]);
    assert(!chat.drafting.session || chat.drafting.length == session_lengths[4]);
    assert(chat.drafting.length <= chat.length);
  }
  for (size_t i = 0; i < chat.message_count; i++) free(chat.messages[i].content.data);
  free(chat.messages), free(chat.ends), free(chat.offsets), free(chat.tokens), free(chat.scratch), free(chat.logits);
  free(chat.reply.data), free(chat.held.data), free(out.data);
}

/* ---- json.c --------------------------------------------------------------------------------------------------------- */

static void run_json(void) {
  const char *characters = "{{}}[[]],,::\"\"\\u0d8e1-.ntfabr \n";
  Text text = {0};
  while (next < end) {
    char c = (char)byte();
    if (byte() % 8) c = characters[(uint8_t)c % strlen(characters)];
    text_add(&text, &c, 1);
  }
  for (int kind = 0; kind < 4; kind++) {
    Json json = json_of(text.data, text.len);
    Text out = {0};
    switch (kind) {
      case 0: json_skip(&json); break;
      case 1: json_string(&json, &out); break;
      case 2: for (json_enter(&json, '{'); json_next(&json); json_skip(&json)) json_key(&json, &out); break;
      case 3: for (json_enter(&json, '['); json_next(&json);) json_null(&json) || json_true(&json) || json_number(&json); break;
    }
    json_ended(&json);
    assert(json.at <= json.end);
    free(out.data);
  }
  free(text.data);
}

/* ---- reply.c of the guest for completions ---------------------------------------------------------------------------- */

static void run_reply(void) {
  uint32_t count = byte() % 4;
  Stop *stops = block(count, sizeof *stops);
  for (uint32_t i = 0; i < count; i++) {
    stops[i].len = 1 + byte() % 6;
    for (uint32_t j = 0; j < stops[i].len; j++) stops[i].text[j] = (char)('a' + byte() % 2);
  }
  Reply reply = {.stops = stops, .stop_count = count};
  uint32_t drawn = 0;
  bool stopped = false;
  while (next < end && !stopped) {
    char text[5]; /* few letters, so that they often make a stop string */
    size_t len = byte() % sizeof text;
    for (size_t i = 0; i < len; i++) text[i] = (char)('a' + byte() % 2);
    Held token = {.record = {.kind = KIND_TOKEN, .token = drawn++, .tops = byte() % (WM_MAX_TOP + 1)}};
    stopped = reply_add(&reply, &token, text, len);
  }
  reply_end(&reply, stopped ? REASON_STOP : REASON_LENGTH, drawn);
  assert(!reply.count && !reply.text.len);
  free(stops), free(reply.held), free(reply.text.data);
}

int main(void) {
  static void (*const runs[])(void) = {run_sampler, run_text, run_chat, run_speculate, run_reply, run_json};
  uint32_t len;
  size_t count = 0;
  while (fread(&len, sizeof len, 1, stdin) == 1) {
    uint8_t *input = block(len, 1);
    assert(fread(input, 1, len, stdin) == len);
    next = input, end = input + len;
    runs[byte() % 6]();
    free(input);
    count++;
  }
  fprintf(stderr, "%zu inputs\n", count);
  return 0;
}
