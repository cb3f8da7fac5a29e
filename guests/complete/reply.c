#include "reply.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void write_out(const char *data, size_t len) {
  while (len) {
    ssize_t written = write(STDOUT_FILENO, data, len);
    if (written < 0) exit(1);
    data += written;
    len -= (size_t)written;
  }
}

/* Writes the held tokens whose text ends at or before `end`, in one piece. */
static void release(Reply *reply, size_t end) {
  Text out = {0};
  size_t count = 0, at = 0;
  for (; count < reply->count && at + reply->held[count].record.len <= end; count++) {
    const Held *token = &reply->held[count];
    text_add(&out, (const char *)&token->record, sizeof token->record);
    text_add(&out, (const char *)token->tops, token->record.tops * sizeof *token->tops);
    text_add(&out, reply->text.data + at, token->record.len);
    at += token->record.len;
  }
  if (!count) return;
  write_out(out.data, out.len);
  free(out.data);
  reply->count -= count;
  memmove(reply->held, reply->held + count, reply->count * sizeof *reply->held);
  reply->text.len -= at;
  if (reply->text.len) memmove(reply->text.data, reply->text.data + at, reply->text.len);
}

/* Where the first stop string begins in the held text; its length if there is none. */
static size_t find_stop(const Reply *reply) {
  const Text *text = &reply->text;
  size_t first = text->len;
  for (uint32_t i = 0; i < reply->stop_count; i++) {
    const char *found = text->len ? memmem(text->data, text->len, reply->stops[i].text, reply->stops[i].len) : NULL;
    if (found && (size_t)(found - text->data) < first) first = (size_t)(found - text->data);
  }
  return first;
}

/* How many bytes at the end of the held text may be the beginning of a stop string. */
static size_t begun(const Reply *reply) {
  const Text *text = &reply->text;
  size_t most = 0;
  for (uint32_t i = 0; i < reply->stop_count; i++) {
    size_t len = reply->stops[i].len - 1;
    if (len > text->len) len = text->len;
    while (len > most && memcmp(text->data + text->len - len, reply->stops[i].text, len)) len--;
    if (len > most) most = len;
  }
  return most;
}

/* Forgets the held text from `end` on, and the tokens that begin there or later. */
static void cut(Reply *reply, size_t end) {
  size_t count = 0, at = 0;
  for (; count < reply->count && at < end; count++) {
    TokenRecord *record = &reply->held[count].record;
    if (at + record->len > end) record->len = (uint32_t)(end - at);
    at += record->len;
  }
  reply->count = count;
  reply->text.len = end;
}

bool reply_add(Reply *reply, const Held *token, const char *text, size_t len) {
  if (reply->count == reply->cap) {
    reply->cap = 2 * reply->cap + 1;
    reply->held = realloc(reply->held, reply->cap * sizeof *reply->held);
    if (!reply->held) {
      fputs("complete: out of memory\n", stderr);
      exit(1);
    }
  }
  reply->held[reply->count] = *token;
  reply->held[reply->count++].record.len = (uint32_t)len;
  text_add(&reply->text, text, len);
  size_t stop = find_stop(reply);
  bool stopped = stop < reply->text.len;
  if (stopped) cut(reply, stop);
  return stopped;
}

void reply_flush(Reply *reply) { release(reply, reply->text.len - begun(reply)); }

void reply_drawn(wm_token token) {
  DrawnRecord drawn = {KIND_DRAWN, token};
  write_out((const char *)&drawn, sizeof drawn);
}

void reply_end(Reply *reply, Reason reason, uint32_t drawn) {
  release(reply, reply->text.len);
  EndRecord end = {KIND_END, reason, drawn};
  write_out((const char *)&end, sizeof end);
}
