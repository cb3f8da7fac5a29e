/* What the guests that `wasmetal serve --guest` makes models of have in common: reading a request, and writing what
 * belongs to an answer beside its text. docs/serve.md says what is in both. */
#ifndef ENDPOINT_H
#define ENDPOINT_H

#include "../chat/chat.h"
#include "wasmetal/text.h"

typedef struct Said {
  Role role;
  Text content;
} Said;

typedef struct Request {
  Said *messages; /* the last is the question */
  size_t count;
  uint32_t max_tokens; /* 0: as many as fit */
  float temperature, top_p;
  uint64_t seed;
  bool continues; /* the messages go on with the conversation; if not, they are all of it */
} Request;

/* Opens the model "default" for a conversation whose answers are the replies. Ends the program if it cannot. */
void endpoint_open(Chat *chat);

/* Reads the message that the actor is handling, in place of an earlier one. */
void endpoint_read(Request *request);

/* Brings the conversation to where the request's question is to be asked, and sets how the answer is drawn. System messages
 * take the place of an earlier one; all of a request are one. */
void endpoint_prepare(Chat *chat, const Request *request);

/* The text of the last message. */
const Text *endpoint_question(const Request *request);

/* Asks; refuses what does not fit the model's context. */
void endpoint_ask(Chat *chat, const char *text, size_t len);

/* Ends the reply: the answer is complete, or it was cut. */
void endpoint_end(bool cut);

/* Replies that there is no answer, and why, and ends the program: the conversation is then as before the message. */
_Noreturn void endpoint_refuse(const char *reason);

/* Writes text of the answer, as Chat's `write` does, but for zero bytes, which would end it. */
void endpoint_answer(const char *data, size_t len);

/* Writes to the reply. */
void endpoint_write(const char *data, size_t len);

#endif
