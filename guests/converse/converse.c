/* A conversation of `wasmetal serve`: an actor whose messages are requests. Between two of them it has the conversation,
 * and the model's session, so that only what is new is run. */
#include "../endpoint/endpoint.h"

static Chat chat;
static Request request;

__attribute__((export_name("wm_actor_start"))) void actor_start(void) { endpoint_open(&chat); }

__attribute__((export_name("wm_actor_message"))) void actor_message(void) {
  endpoint_read(&request);
  endpoint_prepare(&chat, &request);
  const Text *question = endpoint_question(&request);
  endpoint_ask(&chat, question->data, question->len);
  chat_continue(&chat, INFINITY);
  endpoint_end(chat.cut);
}
