/* Three answers and a vote: three forks of the session go on from the same prompt, each with another seed, and the answer
 * that has most in common with the other two is the reply. The prompt's pages of the KV cache are there once.
 *
 * To choose the sample that agrees best with the others is minimum Bayes risk decoding (S. Kumar and W. Byrne, 2004); here
 * two texts agree as far as they have the same words (P. Jaccard, 1912). Of two equal answers out of three, one wins. */
#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "../endpoint/endpoint.h"

#define FORKS 3

typedef struct Words {
  uint64_t *hashes; /* sorted, each once */
  size_t count;
} Words;

static Chat chat;
static Request request;
static Text *answer; /* that is being written */

static void add_to_answer(const char *data, size_t len) { text_add(answer, data, len); }

static int compare(const void *a, const void *b) {
  uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
  return (x > y) - (x < y);
}

static Words words_of(const Text *text) {
  Words words = {.hashes = calloc(text->len / 2 + 1, sizeof *words.hashes)};
  if (!words.hashes) exit(1);
  uint64_t hash = 0;
  for (size_t i = 0; i <= text->len; i++) {
    unsigned char c = i < text->len ? (unsigned char)text->data[i] : ' ';
    if (isalnum(c) || c >= 0x80) hash = ((hash ? hash : 0xcbf29ce484222325) ^ (uint64_t)tolower(c)) * 0x100000001b3; /* FNV-1a */
    else if (hash) words.hashes[words.count++] = hash, hash = 0;
  }
  qsort(words.hashes, words.count, sizeof *words.hashes, compare);
  size_t kept = 0;
  for (size_t i = 0; i < words.count; i++)
    if (!kept || words.hashes[i] != words.hashes[kept - 1]) words.hashes[kept++] = words.hashes[i];
  words.count = kept;
  return words;
}

/* The share of their words that both have. */
static double agreement(const Words *a, const Words *b) {
  size_t i = 0, j = 0, both = 0;
  while (i < a->count && j < b->count) {
    uint64_t x = a->hashes[i], y = b->hashes[j];
    both += x == y;
    i += x <= y;
    j += y <= x;
  }
  size_t all = a->count + b->count - both;
  return all ? (double)both / (double)all : 1;
}

/* The answer with most votes; of equals, the first. */
static size_t elect(const Text *answers) {
  Words words[FORKS];
  for (size_t i = 0; i < FORKS; i++) words[i] = words_of(&answers[i]);
  size_t best = 0;
  double most = -1;
  for (size_t i = 0; i < FORKS; i++) {
    double votes = 0;
    for (size_t j = 0; j < FORKS; j++) votes += i == j ? 0 : agreement(&words[i], &words[j]);
    if (votes > most) most = votes, best = i;
  }
  for (size_t i = 0; i < FORKS; i++) free(words[i].hashes);
  return best;
}

__attribute__((export_name("wm_actor_start"))) void actor_start(void) { endpoint_open(&chat); }

__attribute__((export_name("wm_actor_message"))) void actor_message(void) {
  endpoint_read(&request);
  endpoint_prepare(&chat, &request);
  const Text *question = endpoint_question(&request);
  endpoint_ask(&chat, question->data, question->len);
  chat.answering = false; /* it is the forks that do */
  Text answers[FORKS] = {0};
  bool cut[FORKS];
  for (size_t i = 0; i < FORKS; i++) {
    Chat fork;
    chat_fork(&chat, request.seed + i, &fork);
    fork.answering = true;
    fork.write = add_to_answer;
    answer = &answers[i];
    chat_continue(&fork, INFINITY);
    cut[i] = fork.cut;
    chat_close_fork(&fork);
  }
  size_t best = elect(answers);
  chat_add(&chat, ASSISTANT, answers[best].data, answers[best].len);
  endpoint_answer(answers[best].data, answers[best].len);
  for (size_t i = 0; i < FORKS; i++) free(answers[i].data);
  endpoint_end(cut[best]);
}
