#include "endpoint.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "wasmetal/json.h"

void endpoint_write(const char *data, size_t len) {
  if (wm_reply_write(data, len)) exit(1);
}

void endpoint_answer(const char *data, size_t len) {
  for (const char *end = data + len, *zero; data < end; data = zero + 1) {
    zero = memchr(data, 0, (size_t)(end - data));
    if (!zero) zero = end;
    if (zero > data) endpoint_write(data, (size_t)(zero - data));
  }
}

void endpoint_open(Chat *chat) {
  chat->options = (Options){.model = "default", .exact = true, .sampler = {.temperature = 1, .top_p = 1, .repeat_penalty = 1}};
  chat->write = endpoint_answer;
  if (!chat_open(chat)) exit(1);
}

/* ---- Reading ------------------------------------------------------------------------------------------------------ */

static Role role_of(const Text *name) {
  return text_is(name, "system") ? SYSTEM : text_is(name, "user") ? USER : text_is(name, "assistant") ? ASSISTANT : ROLES;
}

static bool read_message(Json *json, Said *said, Text *text) {
  said->role = ROLES;
  json_enter(json, '{');
  while (json_next(json)) {
    json_key(json, text);
    if (text_is(text, "content")) {
      json_string(json, &said->content);
    } else if (text_is(text, "role")) {
      json_string(json, text);
      said->role = role_of(text);
    } else {
      json_skip(json);
    }
  }
  return said->role != ROLES;
}

static bool read_messages(Json *json, Request *request, Text *text) {
  json_enter(json, '[');
  while (json_next(json)) {
    request->messages = realloc(request->messages, (request->count + 1) * sizeof *request->messages);
    if (!request->messages) exit(1);
    request->messages[request->count] = (Said){0};
    if (!read_message(json, &request->messages[request->count++], text)) return false;
  }
  return true;
}

static bool parse(Request *request, const char *data, size_t len) {
  Json json = json_of(data, len);
  Text text = {0};
  bool known = true;
  json_enter(&json, '{');
  while (json_next(&json)) {
    json_key(&json, &text);
    if (text_is(&text, "messages")) known = read_messages(&json, request, &text) && known;
    else if (json_null(&json)) continue;
    else if (text_is(&text, "max_tokens")) request->max_tokens = (uint32_t)json_number(&json);
    else if (text_is(&text, "temperature")) request->temperature = (float)json_number(&json);
    else if (text_is(&text, "top_p")) request->top_p = (float)json_number(&json);
    else if (text_is(&text, "continues")) request->continues = json_true(&json);
    else if (text_is(&text, "seed")) request->seed = (uint64_t)json_number(&json);
    else json_skip(&json);
  }
  free(text.data);
  return json_ended(&json) && known && request->count && request->messages[request->count - 1].role == USER;
}

void endpoint_read(Request *request) {
  for (size_t i = 0; i < request->count; i++) free(request->messages[i].content.data);
  free(request->messages);
  *request = (Request){.temperature = 1, .top_p = 1};
  if (getentropy(&request->seed, sizeof request->seed)) exit(1);
  wm_message_info info;
  size_t len;
  if (wm_message_describe(&info)) exit(1);
  char *data = malloc((size_t)info.length + 1);
  if (!data || wm_message_read(data, (size_t)info.length, &len)) exit(1);
  if (!parse(request, data, len))
    endpoint_refuse("the messages must be texts of the roles system, user and assistant, and the last a user's");
  free(data);
}

void endpoint_prepare(Chat *chat, const Request *request) {
  Sampler *sampler = &chat->options.sampler;
  chat->options.max_tokens = request->max_tokens;
  sampler->temperature = request->temperature;
  sampler->top_p = request->top_p;
  sampler->seed = request->seed;
  if (!request->continues) chat_restart(chat);
  Text system = {0};
  bool given = false;
  for (size_t i = 0; i + 1 < request->count; i++) {
    const Said *said = &request->messages[i];
    if (said->role != SYSTEM) {
      chat_add(chat, said->role, said->content.data, said->content.len);
      continue;
    }
    if (system.len) text_add_string(&system, "\n\n");
    text_add(&system, said->content.data, said->content.len);
    given = true;
  }
  if (given) chat_set_system(chat, system.data, system.len);
  free(system.data);
}

const Text *endpoint_question(const Request *request) { return &request->messages[request->count - 1].content; }

void endpoint_ask(Chat *chat, const char *text, size_t len) {
  if (!chat_ask(chat, text, len)) endpoint_refuse(chat_reason());
}

/* ---- Writing ------------------------------------------------------------------------------------------------------ */

void endpoint_end(bool cut) {
  static const char length[] = "\0{\"finish_reason\": \"length\"}";
  if (cut) endpoint_write(length, sizeof length - 1);
}

void endpoint_refuse(const char *reason) {
  Text out = {0};
  text_add(&out, "\0", 1);
  text_add_string(&out, "{\"error\": ");
  text_add_json(&out, reason, strlen(reason));
  text_add_string(&out, "}");
  endpoint_write(out.data, out.len);
  exit(1);
}
