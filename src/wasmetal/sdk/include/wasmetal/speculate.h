/* Speculative decoding: guess several next tokens (the draft), and verify them in one forward pass. Needs speculate.c
 * and sampler.c, which is compiled with -msimd128.
 *
 * wm_session_forward_top with the last token and a draft of d tokens, and 1 + d rows, gives the logits after each of
 * them. Row i decides on token i of the draft, and the row after the last accepted one gives one token more;
 * wm_session_truncate drops what was not accepted. What comes out has the same distribution as without a draft.
 *
 * Of a draft without probabilities, as from speculate_lookup, accept a token if sample() draws the same from its row;
 * otherwise, what it drew takes its place. So the same seed gives the same tokens as without a draft, but for how the
 * device rounds logits in passes of several tokens. Of a draft that was drawn from a distribution of its own, more
 * tokens are accepted with speculate_verify. */
#ifndef WASMETAL_SPECULATE_H
#define WASMETAL_SPECULATE_H

#include <stddef.h>
#include <stdint.h>

/* Looks for the last of the n tokens, at most `longest` and as many as possible, in what comes before, and proposes what
 * followed them where they were last found (A. Saxena, "Prompt lookup decoding", 2023). Writes `most` tokens to `draft`;
 * where less than that followed, the draft goes on as if it had been appended. Returns how many tokens it wrote: 0 if
 * the last token is new. */
uint32_t speculate_lookup(const uint32_t *tokens, size_t n, uint32_t longest, uint32_t *draft, uint32_t most);

/* A distribution, as sampler_distribution gives it: n > 0 tokens, all different. All others have probability 0. */
typedef struct Choices {
  uint32_t n;
  const uint32_t *tokens;
  const double *probabilities;
} Choices;

/* Draws a token. */
uint32_t speculate_draw(const Choices *from, uint64_t *seed);

/* Decides on a token that was drawn from `draft`, the draft model's distribution, where `target` is that of the model
 * (Y. Leviathan et al., "Fast inference from transformers via speculative decoding", 2023). Returns `token` if it is
 * accepted, or else the token that takes its place. If `token` was drawn from `draft`, what is returned has the
 * distribution `target`. */
uint32_t speculate_verify(const Choices *target, const Choices *draft, uint32_t token, uint64_t *seed);

#endif
