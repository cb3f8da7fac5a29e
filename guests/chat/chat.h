/* A conversation with a language model. */
#ifndef CHAT_H
#define CHAT_H

#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "drafting.h"
#include "wasmetal/sampler.h"
#include "wasmetal/text.h"
#include "wasmetal.h"

typedef struct Options {
  const char *prompt, *system, *model;
  const char *draft_model; /* NULL: drafts are looked up */
  bool raw, greedy, stats;
  bool exact; /* answers are written as they are; otherwise with one line end at their end */
  uint32_t max_tokens;   /* 0: as many as fit */
  uint32_t draft_tokens; /* tokens of a draft, at most MAX_DRAFT; 0: no drafts */
  Sampler sampler;
} Options;

typedef enum Role { SYSTEM, USER, ASSISTANT, ROLES } Role;

typedef struct Message {
  Role role;
  Text content;
  bool spells_token; /* the content spells out a control token, such as <|im_end|> */
} Message;

typedef struct Chat {
  Options options;
  void (*write)(const char *data, size_t len); /* takes the answers as they are made */
  wm_model model;
  wm_model_info info;
  wm_session session;
  wm_token *ends;
  uint32_t *offsets; /* where each token's bytes begin in pieces, and the end of the last */
  const char *pieces;
  wm_token *tokens; /* what the session holds: context_length places, `length` in use */
  uint32_t length;
  float *logits;
  wm_candidate top[WM_MAX_TOP_ROWS * WM_MAX_TOP]; /* the likeliest tokens, if the sampler needs no others */
  uint32_t *scratch;
  char placeholder[20]; /* stands in a rendered template for a message that spells a token */
  Message *messages;
  size_t message_count;
  Drafting drafting;
  bool answering;
  bool cut; /* the last answer ended for want of room, or at max_tokens */
  wm_token next; /* of the answer: drawn, and not said yet */
  Text reply, held; /* the answer so far, and its line ends that are not written yet */
  uint32_t reply_tokens;
  uint32_t prefill_tokens, decode_tokens, drafted_tokens, accepted_tokens;
  double prefill_seconds, decode_seconds;
} Chat;

/* Functions that return bool say on standard error why they return false; the conversation is then as it was. A failure
 * after which it cannot go on ends the program. */

/* The last of those lines. */
const char *chat_reason(void);

/* Opens the model that the options name. */
bool chat_open(Chat *chat);

/* Replaces the system message; without text, drops it. */
bool chat_set_system(Chat *chat, const char *text, size_t len);

/* Adds a message that was said before. */
bool chat_add(Chat *chat, Role role, const char *text, size_t len);

/* Forgets all messages, but not the system message unless `all`. */
void chat_forget(Chat *chat, bool all);

/* Forgets all messages. The session keeps its tokens, for a conversation that begins with the same. */
void chat_restart(Chat *chat);

/* Runs the conversation with this question, or for --raw this text alone: then chat_continue writes the answer. */
bool chat_ask(Chat *chat, const char *text, size_t len);

/* Goes on with the answer until it ends, which returns false, or for about so many seconds, at most twice as many. */
bool chat_continue(Chat *chat, double seconds);

/* Ends the answer now. */
void chat_end(Chat *chat);

/* Another answer to the question that was asked last and to which nothing has been said yet, drawn with another seed. Of
 * the conversation the fork has the session's tokens alone, which the two hold once. There may be no drafts. */
void chat_fork(const Chat *chat, uint64_t seed, Chat *fork);

/* Releases what a fork holds. */
void chat_close_fork(Chat *fork);

/* Adds the messages as a JSON array of objects with "role" and "content". */
void chat_messages(const Chat *chat, Text *json);

/* Adds one line of JSON: tokens in the context, tokens prefilled and decoded, and the seconds that took; tokens of drafts,
 * and how many of those were accepted. */
void chat_stats(const Chat *chat, Text *json);

#endif
