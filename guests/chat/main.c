/* A conversation with a language model: the control plane, inside the sandbox.
 *
 * The guest keeps the conversation and the settings of the sampler; the host tokenizes and holds the model. The device
 * chooses several tokens for a call of wm_session_generate, which are written at once. Where the sampler needs all logits,
 * the device writes them into this guest's memory, nothing is copied, and a token costs two host calls:
 * wm_session_forward, and one write of its text. With drafts, the device finds the tokens that the sampler chooses from,
 * and a pass may give several.
 *
 * There are three ways to run it. As a command (_start) it answers -p, or each line of standard input, and exits. Turn
 * by turn, a host calls the functions exported below; between two calls no code of the guest runs, so a host can edit a
 * line, stop an answer or leave at any time. As an actor, it answers each message with a reply. Answers are given as they
 * are made, each with one newline at its end, to standard output or as the reply; and what went wrong goes to standard
 * error, one line each.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <wasi/api.h>

#include "chat.h"

static const char USAGE[] =
    "usage: chat [-p PROMPT] [--system TEXT] [--raw] [--greedy] [--max-tokens N] [--seed N] [--temperature T]\n"
    "            [--top-k K] [--top-p P] [--min-p P] [--repeat-penalty R] [--model NAME]\n"
    "            [--draft-tokens D] [--draft-model NAME] [--stats]\n";

static Chat chat;

/* ---- The command line --------------------------------------------------------------------------------------------- */

static bool usage(void) {
  fputs(USAGE, stderr);
  return false;
}

static bool number(const char *name, const char *text, double least, double most, double *value) {
  char *end;
  *value = strtod(text, &end);
  if (end != text && !*end && *value >= least && *value <= most) return true;
  fprintf(stderr, "chat: %s is a number from %.16g to %.16g, not '%s'\n", name, least, most, text);
  return false;
}

static bool parse(int argc, char **argv, Options *o) {
  *o = (Options){.model = "default", .sampler = {.temperature = 0.7f, .top_k = 40, .top_p = 0.95f, .min_p = 0.05f,
                                                 .repeat_penalty = 1}};
  if (getentropy(&o->sampler.seed, sizeof o->sampler.seed)) {
    fputs("chat: no random seed\n", stderr);
    return false;
  }
  for (int i = 1; i < argc; i++) {
    const char *name = argv[i];
    if (!strcmp(name, "--raw")) { o->raw = true; continue; }
    if (!strcmp(name, "--greedy")) { o->greedy = true; continue; }
    if (!strcmp(name, "--stats")) { o->stats = true; continue; }
    if (++i == argc) return usage();
    const char *text = argv[i];
    double value;
    if (!strcmp(name, "-p")) o->prompt = text;
    else if (!strcmp(name, "--system")) o->system = text;
    else if (!strcmp(name, "--model")) o->model = text;
    else if (!strcmp(name, "--draft-model")) o->draft_model = text;
    else if (!strcmp(name, "--max-tokens")) {
      if (!number(name, text, 1, UINT32_MAX, &value)) return false;
      o->max_tokens = (uint32_t)value;
    } else if (!strcmp(name, "--draft-tokens")) {
      if (!number(name, text, 0, MAX_DRAFT, &value)) return false;
      o->draft_tokens = (uint32_t)value;
    } else if (!strcmp(name, "--seed")) {
      if (!number(name, text, 0, 0x1p53, &value)) return false;
      o->sampler.seed = (uint64_t)value;
    } else if (!strcmp(name, "--temperature")) {
      if (!number(name, text, 0, 100, &value)) return false;
      o->sampler.temperature = (float)value;
    } else if (!strcmp(name, "--top-k")) {
      if (!number(name, text, 0, UINT32_MAX, &value)) return false;
      o->sampler.top_k = (uint32_t)value;
    } else if (!strcmp(name, "--top-p")) {
      if (!number(name, text, 0, 1, &value)) return false;
      o->sampler.top_p = (float)value;
    } else if (!strcmp(name, "--min-p")) {
      if (!number(name, text, 0, 1, &value)) return false;
      o->sampler.min_p = (float)value;
    } else if (!strcmp(name, "--repeat-penalty")) {
      if (!number(name, text, 0.01, 100, &value)) return false;
      o->sampler.repeat_penalty = (float)value;
    } else return usage();
  }
  if (o->greedy) o->sampler.temperature = 0;
  if (o->draft_model && !o->draft_tokens) {
    fputs("chat: --draft-model needs --draft-tokens, how many tokens it drafts at a time\n", stderr);
    return false;
  }
  return true;
}

static void write_out(const char *data, size_t len) {
  while (len) {
    ssize_t written = write(STDOUT_FILENO, data, len);
    if (written < 0) exit(1);
    data += written;
    len -= (size_t)written;
  }
}

static int begin(int argc, char **argv) {
  chat.write = write_out;
  return !parse(argc, argv, &chat.options) ? 2 : !chat_open(&chat) ? 1 : 0;
}

/* ---- As a command ------------------------------------------------------------------------------------------------- */

static bool answer(const char *text, size_t len) {
  if (!chat_ask(&chat, text, len)) return false;
  chat_continue(&chat, INFINITY);
  return true;
}

/* Answers lines until the end of the input. */
static bool converse(void) {
  bool asks = isatty(STDIN_FILENO), ok = true;
  char *line = NULL;
  size_t cap = 0;
  while (ok) {
    if (asks) fputs("> ", stderr);
    ssize_t len = getline(&line, &cap, stdin);
    if (len < 0) break;
    while (len && (line[len - 1] == '\n' || line[len - 1] == '\r')) len--;
    if (len) ok = answer(line, (size_t)len);
  }
  if (asks) fputs("\n", stderr);
  free(line);
  return ok;
}

int main(int argc, char **argv) {
  int error = begin(argc, argv);
  if (error) return error;
  const Options *o = &chat.options;
  if (!(o->prompt ? answer(o->prompt, strlen(o->prompt)) : converse())) return 1;
  if (o->stats) {
    Text json = {0};
    chat_stats(&chat, &json);
    fwrite(json.data, 1, json.len, stderr);
  }
  return 0;
}

/* ---- Turn by turn ------------------------------------------------------------------------------------------------- */

#define EXPORT(name) __attribute__((export_name("chat_" #name)))

static Text exchange; /* what host and guest hand each other as text, UTF-8 */

/* Call this first, once, in place of _start: reads the program's arguments (-p and --stats mean nothing here) and opens
 * the model. Returns 0, or as a command's exit code, 1 (the model cannot be used) or 2 (the arguments are wrong). */
EXPORT(open) int32_t export_open(void) {
  size_t argc, size;
  if (__wasi_args_sizes_get(&argc, &size)) return 2;
  char **argv = calloc(argc + 1, sizeof *argv), *bytes = malloc(size);
  if (!argv || !bytes || __wasi_args_get((uint8_t **)argv, (uint8_t *)bytes)) return 2;
  return begin((int)argc, argv);
}

/* Makes room for a text and returns its address: the host writes what it hands over there, and finds there what a
 * function handed back. */
EXPORT(text) char *export_text(uint32_t len) {
  exchange.len = 0;
  return text_room(&exchange, len);
}

/* These take the text of so many bytes, and return 1 if all went well. */

/* Asks: the text is the question. The answer is for chat_continue to write. */
EXPORT(ask) int32_t export_ask(uint32_t len) { return chat_ask(&chat, exchange.data, len); }

/* Sets the system message; 0 bytes: drops it. */
EXPORT(system) int32_t export_system(uint32_t len) { return chat_set_system(&chat, exchange.data, len); }

/* Adds a message that was said before. role: 0 system, 1 user, 2 assistant. */
EXPORT(add) int32_t export_add(uint32_t role, uint32_t len) { return chat_add(&chat, (Role)role, exchange.data, len); }

/* Goes on with the answer for so long or up to twice as long: 1 if there is more to come, 0 if that was its end. */
EXPORT(continue) int32_t export_continue(uint32_t milliseconds) { return chat_continue(&chat, milliseconds / 1e3); }

/* Ends the answer now; the conversation keeps what there is of it. */
EXPORT(end) void export_end(void) { chat_end(&chat); }

/* Forgets all messages, but not the system message unless `all`. */
EXPORT(forget) void export_forget(uint32_t all) { chat_forget(&chat, all); }

/* These hand back a text and return its bytes. */

/* The messages: a JSON array of objects with "role" and "content". */
EXPORT(messages) uint32_t export_messages(void) {
  exchange.len = 0;
  chat_messages(&chat, &exchange);
  return (uint32_t)exchange.len;
}

/* A JSON object: context_tokens, context_length, prefill_tokens, prefill_seconds, decode_tokens, decode_seconds,
 * drafted_tokens, accepted_tokens. */
EXPORT(stats) uint32_t export_stats(void) {
  exchange.len = 0;
  chat_stats(&chat, &exchange);
  return (uint32_t)exchange.len;
}

/* ---- As an actor -------------------------------------------------------------------------------------------------- */

static void reply(const char *data, size_t len) {
  if (wm_reply_write(data, len)) exit(1);
}

/* Before the first message: reads the arguments and opens the model. */
__attribute__((export_name("wm_actor_start"))) void actor_start(void) {
  int error = export_open();
  if (error) exit(error);
  chat.write = reply;
}

/* A message is a question, and the reply is its answer: none if it is too long. */
__attribute__((export_name("wm_actor_message"))) void actor_message(void) {
  wm_message_info info;
  size_t len;
  if (wm_message_describe(&info) || info.kind != WM_MESSAGE_SENT) return;
  if (info.length > SIZE_MAX) exit(1);
  char *text = export_text((uint32_t)info.length);
  if (wm_message_read(text, (size_t)info.length, &len)) exit(1);
  answer(text, len);
}
