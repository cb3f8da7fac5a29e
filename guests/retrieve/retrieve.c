/* Answers from a folder: of the texts in /docs, which must be granted, it finds the passages that fit the question best,
 * has the model answer with them, and names their files at the end. The folder is read anew for each question. */
#include <stdlib.h>
#include <string.h>

#include "../endpoint/endpoint.h"
#include "passages.h"

#define FOLDER "/docs"
#define PASSAGES 3

static Chat chat;
static Request request;

__attribute__((export_name("wm_actor_start"))) void actor_start(void) { endpoint_open(&chat); }

/* The question as the model gets it. */
static void compose(Text *prompt, const Passages *found, size_t count, const Text *question) {
  if (count) text_add_string(prompt, "Answer the question at the end with what these passages say.\n\n");
  for (size_t i = 0; i < count; i++) {
    const Passage *passage = &found->all[i];
    text_add_string(prompt, "[");
    text_add_utf8(prompt, passage->name, strlen(passage->name));
    text_add_string(prompt, "]\n");
    text_add_utf8(prompt, passage->text, passage->len);
    text_add_string(prompt, "\n\n");
  }
  if (count) text_add_string(prompt, "Question: ");
  text_add(prompt, question->data, question->len);
}

/* Ends the answer with the names of the passages' files, each once. */
static void name_sources(const Passages *found, size_t count) {
  Text line = {0};
  for (size_t i = 0; i < count; i++) {
    size_t before = 0;
    while (before < i && strcmp(found->all[before].name, found->all[i].name)) before++;
    if (before < i) continue;
    text_add_string(&line, line.len ? ", " : "\n\nFrom: ");
    text_add_utf8(&line, found->all[i].name, strlen(found->all[i].name));
  }
  if (line.len) endpoint_write(line.data, line.len);
  free(line.data);
}

__attribute__((export_name("wm_actor_message"))) void actor_message(void) {
  endpoint_read(&request);
  endpoint_prepare(&chat, &request);
  Passages passages = {0};
  if (!passages_read(&passages, FOLDER)) endpoint_refuse("no folder was granted as /docs");
  const Text *question = endpoint_question(&request);
  size_t count = passages_find(&passages, question->data, question->len, PASSAGES);
  Text prompt = {0};
  for (;; count--, prompt.len = 0) { /* with as many passages as fit the context */
    compose(&prompt, &passages, count, question);
    if (chat_ask(&chat, prompt.data, prompt.len)) break;
    if (!count) endpoint_refuse(chat_reason());
  }
  free(prompt.data);
  chat_continue(&chat, INFINITY);
  name_sources(&passages, count);
  passages_free(&passages);
  endpoint_end(chat.cut);
}
