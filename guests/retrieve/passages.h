/* Passages of the texts in a folder, and those that fit a question best: BM25 (S. Robertson and H. Zaragoza, "The
 * Probabilistic Relevance Framework", 2009) with k1 = 1.2 and b = 0.75. */
#ifndef PASSAGES_H
#define PASSAGES_H

#include <stddef.h>
#include <stdint.h>

typedef struct Passage {
  const char *name; /* of its file, below the folder */
  const char *text; /* not zero-terminated */
  size_t len;
  uint32_t words;
  double score;
} Passage;

typedef struct Passages {
  Passage *all;
  size_t count;
  char **owned; /* names and texts of files */
  size_t owned_count;
  size_t bytes; /* of texts */
} Passages;

/* Reads the files .txt and .md in a folder and in those below it: paragraphs, short ones together. Files of more than
 * 1 MiB, and what goes beyond 16 MiB in all, are left out. False if there is no such folder. */
int passages_read(Passages *passages, const char *folder);

/* Puts the best `most` first, the best of them first; returns how many have anything to do with the question. */
size_t passages_find(Passages *passages, const char *question, size_t len, size_t most);

void passages_free(Passages *passages);

#endif
