#include "passages.h"

#include <ctype.h>
#include <dirent.h>
#include <fcntl.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define FILE_BYTES (1u << 20)
#define ALL_BYTES (16u << 20)
#define DEPTH 8         /* of folders in folders */
#define SHORT 400       /* bytes: a paragraph goes on with the next until a passage has so many, */
#define LONG 1200       /* and is cut at so many */
#define MOST_TERMS 64   /* words of a question */
#define LONGEST_WORD 64 /* bytes; what follows is ignored */

static const double K1 = 1.2, B = 0.75;

static void *checked(void *memory) {
  if (!memory) {
    fputs("retrieve: out of memory\n", stderr);
    exit(1);
  }
  return memory;
}

static char *own(Passages *p, char *text) {
  p->owned = checked(realloc(p->owned, (p->owned_count + 1) * sizeof *p->owned));
  return p->owned[p->owned_count++] = text;
}

/* ---- Words -------------------------------------------------------------------------------------------------------- */

typedef struct Term {
  char text[LONGEST_WORD];
  size_t len;
} Term;

static bool in_word(char c) { return isalnum((unsigned char)c) || (unsigned char)c >= 0x80; }

/* The next word from *at on, in lower case. */
static bool next_word(const char **at, const char *end, Term *term) {
  while (*at < end && !in_word(**at)) ++*at;
  term->len = 0;
  for (; *at < end && in_word(**at); ++*at)
    if (term->len < LONGEST_WORD) term->text[term->len++] = (char)tolower((unsigned char)**at);
  return term->len;
}

static bool same(const Term *a, const Term *b) { return a->len == b->len && !memcmp(a->text, b->text, a->len); }

static uint32_t count_words(const char *text, size_t len) {
  Term term;
  uint32_t count = 0;
  for (const char *at = text; next_word(&at, text + len, &term);) count++;
  return count;
}

/* ---- Reading ------------------------------------------------------------------------------------------------------ */

static void add(Passages *p, const char *name, const char *text, size_t len) {
  while (len && isspace((unsigned char)*text)) text++, len--;
  while (len && isspace((unsigned char)text[len - 1])) len--;
  uint32_t words = count_words(text, len);
  if (!words) return;
  if (!(p->count & (p->count - 1))) p->all = checked(realloc(p->all, (p->count ? 2 * p->count : 1) * sizeof *p->all));
  p->all[p->count++] = (Passage){name, text, len, words, 0};
}

/* Cuts a text: at empty lines where that gives passages of a good length, at line ends or anywhere where it does not. */
static void split(Passages *p, const char *name, const char *text, size_t len) {
  const char *end = text + len, *begin = text;
  while (begin < end) {
    const char *most = end - begin > LONG ? begin + LONG : end, *cut = NULL;
    for (const char *at = begin; at < most && !(cut && cut - begin >= SHORT); at++)
      if (at[0] == '\n' && at + 1 < end && at[1] == '\n') cut = at + 1;
    if (most == end && (!cut || cut - begin < SHORT)) cut = end;
    for (const char *at = most; !cut && at > begin; at--)
      if (at[-1] == '\n' || at[-1] == ' ') cut = at;
    if (!cut) cut = most;
    add(p, name, begin, (size_t)(cut - begin));
    begin = cut;
  }
}

static void read_file(Passages *p, int folder, const char *file, const char *name) {
  int fd = openat(folder, file, O_RDONLY);
  if (fd < 0) return;
  struct stat found;
  if (!fstat(fd, &found) && S_ISREG(found.st_mode) && found.st_size <= FILE_BYTES && p->bytes + found.st_size <= ALL_BYTES) {
    size_t size = (size_t)found.st_size, len = 0;
    char *text = own(p, checked(malloc(size + 1)));
    for (ssize_t got; len < size && (got = read(fd, text + len, size - len)) > 0;) len += (size_t)got;
    p->bytes += len;
    split(p, own(p, checked(strdup(name))), text, len);
  }
  close(fd);
}

static bool is_text(const char *name) {
  size_t len = strlen(name);
  return len > 4 ? !strcmp(name + len - 4, ".txt") || !strcmp(name + len - 3, ".md") : len == 4 && !strcmp(name + 1, ".md");
}

static bool read_folder(Passages *p, const char *path, const char *below, int depth) {
  DIR *folder = opendir(path);
  if (!folder) return false;
  for (struct dirent *entry; (entry = readdir(folder));) {
    const char *file = entry->d_name;
    if (file[0] == '.') continue;
    char *inner = NULL, *name = NULL;
    if (asprintf(&inner, "%s/%s", path, file) < 0 || asprintf(&name, "%s%s", below, file) < 0) exit(1);
    if (is_text(file)) {
      read_file(p, dirfd(folder), file, name);
    } else if (entry->d_type == DT_DIR && depth < DEPTH) {
      char *deeper = NULL;
      if (asprintf(&deeper, "%s/", name) < 0) exit(1);
      read_folder(p, inner, deeper, depth + 1);
      free(deeper);
    }
    free(inner);
    free(name);
  }
  closedir(folder);
  return true;
}

int passages_read(Passages *p, const char *folder) { return read_folder(p, folder, "", 0); }

void passages_free(Passages *p) {
  for (size_t i = 0; i < p->owned_count; i++) free(p->owned[i]);
  free(p->owned);
  free(p->all);
  *p = (Passages){0};
}

/* ---- Finding ------------------------------------------------------------------------------------------------------ */

/* The question's different words. */
static size_t terms_of(const char *question, size_t len, Term *terms) {
  size_t count = 0;
  for (const char *at = question; count < MOST_TERMS && next_word(&at, question + len, &terms[count]);) {
    size_t i = 0;
    while (i < count && !same(&terms[i], &terms[count])) i++;
    count += i == count;
  }
  return count;
}

/* How often each term stands in a passage. */
static void count_terms(const Passage *passage, const Term *terms, size_t n, uint32_t *counts) {
  memset(counts, 0, n * sizeof *counts);
  Term term;
  for (const char *at = passage->text; next_word(&at, passage->text + passage->len, &term);)
    for (size_t i = 0; i < n; i++) counts[i] += same(&term, &terms[i]);
}

/* The better score first; equal ones by name, so that the order does not depend on how a folder is listed. */
static int compare(const void *a, const void *b) {
  const Passage *x = a, *y = b;
  if (x->score != y->score) return x->score < y->score ? 1 : -1;
  int names = strcmp(x->name, y->name);
  return names ? names : (x->text > y->text) - (x->text < y->text);
}

size_t passages_find(Passages *p, const char *question, size_t len, size_t most) {
  static Term terms[MOST_TERMS + 1];
  size_t n = terms_of(question, len, terms), found = 0;
  uint32_t *counts = checked(calloc(p->count * n + 1, sizeof *counts)), with[MOST_TERMS] = {0};
  double mean = 0;
  for (size_t i = 0; i < p->count; i++) {
    count_terms(&p->all[i], terms, n, counts + i * n);
    for (size_t t = 0; t < n; t++) with[t] += counts[i * n + t] > 0;
    mean += (double)p->all[i].words / (double)p->count;
  }
  for (size_t i = 0; i < p->count; i++) {
    Passage *passage = &p->all[i];
    passage->score = 0;
    for (size_t t = 0; t < n; t++) {
      double times = counts[i * n + t], rarity = log(1 + ((double)p->count - with[t] + 0.5) / (with[t] + 0.5));
      passage->score += rarity * times * (K1 + 1) / (times + K1 * (1 - B + B * passage->words / mean));
    }
    found += passage->score > 0;
  }
  free(counts);
  qsort(p->all, p->count, sizeof *p->all, compare);
  return found < most ? found : most;
}
