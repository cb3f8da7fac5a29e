/* Attacks the host functions with hostile numbers, one call at a time. Each call must return its errno and have no
 * other effect: the memory around stays unchanged, and the guest continues.
 *
 *   attacker [STOLEN]
 *
 * STOLEN: a handle of another guest. Prints what the host let through, and exits with 1 if that is anything at all.
 */
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "wasmetal.h"

#define PAGE 65536u
#define POISON 0x5a

/* Addresses that a C compiler would reject or fold. */
#define AT(address) ((void *)(uintptr_t)(address))

static _Alignas(65536) uint8_t before[PAGE];
static _Alignas(65536) uint8_t arena[4 * PAGE];
static _Alignas(65536) uint8_t after[PAGE];
static wm_command list[2];
static int attacks, failures;

static void expect(wm_errno error, wm_errno expected, const char *attack, int line) {
  attacks++;
  if (error == expected) return;
  failures++;
  printf("line %d: errno %u, not %u: %s\n", line, error, expected, attack);
}

#define EXPECT(expected, call) expect(call, expected, #call, __LINE__)

static bool poisoned(const uint8_t *bytes) {
  for (size_t i = 0; i < PAGE; i++)
    if (bytes[i] != POISON) return false;
  return true;
}

/* The end of the memory, which moves when it grows. */
#define END (__builtin_wasm_memory_size(0) * (uintptr_t)PAGE)

static wm_buffer shared(void) {
  wm_buffer buffer = 0;
  EXPECT(WM_SUCCESS, wm_buffer_create(arena, sizeof arena, WM_USAGE_READ | WM_USAGE_WRITE, &buffer));
  return buffer;
}

static wm_tensor row(wm_buffer buffer, uint64_t offset, uint32_t n) {
  return (wm_tensor){.buffer = buffer, .dtype = WM_F32, .offset = offset, .rank = 1, .shape = {n}};
}

static wm_errno submit(const wm_command *command) {
  wm_submission submission;
  wm_errno error = wm_commands_submit(command, sizeof *command, &submission);
  if (error == WM_SUCCESS) wm_submission_wait(submission, WM_FOREVER);
  return error;
}

static void pointers(void) {
  wm_buffer buffer;
  const uint32_t rw = WM_USAGE_READ | WM_USAGE_WRITE;

  EXPECT(WM_FAULT, wm_buffer_create(AT(END), PAGE, rw, &buffer));                       /* past the end */
  EXPECT(WM_FAULT, wm_buffer_create(AT(END - PAGE), 2 * PAGE, rw, &buffer));            /* across the end */
  EXPECT(WM_FAULT, wm_buffer_create(AT(0u - PAGE), PAGE, rw, &buffer));                 /* the last page of all */
  EXPECT(WM_FAULT, wm_buffer_create(AT(0u - PAGE), 2 * PAGE, rw, &buffer));             /* wraps around to 64 KiB */
  EXPECT(WM_FAULT, wm_buffer_create(AT(PAGE), 0u - PAGE, rw, &buffer));                 /* ends at 2^32: wraps to 0 */
  EXPECT(WM_INVAL, wm_buffer_create(arena, 0xffffffffu, rw, &buffer));
  EXPECT(WM_INVAL, wm_buffer_create(arena, 0, rw, &buffer));
  EXPECT(WM_INVAL, wm_buffer_create(arena + 1, PAGE, rw, &buffer));                     /* misaligned */
  EXPECT(WM_INVAL, wm_buffer_create(arena, PAGE + 1, rw, &buffer));
  EXPECT(WM_INVAL, wm_buffer_create(arena, PAGE, 0, &buffer));                          /* usage */
  EXPECT(WM_INVAL, wm_buffer_create(arena, PAGE, 4, &buffer));
  EXPECT(WM_INVAL, wm_buffer_create(arena, PAGE, 0xffffffffu, &buffer));
  EXPECT(WM_FAULT, wm_buffer_create(arena, PAGE, rw, AT(END)));                         /* the place for the handle is outside */
  EXPECT(WM_FAULT, wm_buffer_create(arena, PAGE, rw, AT(0xfffffffcu)));
  EXPECT(WM_INVAL, wm_buffer_create(arena, PAGE, rw, AT(END - 2)));
  EXPECT(WM_INVAL, wm_buffer_create_device(0, rw, &buffer));
  EXPECT(WM_NOMEM, wm_buffer_create_device(UINT64_MAX, rw, &buffer));
  EXPECT(WM_NOMEM, wm_buffer_create_device((uint64_t)1 << 63, rw, &buffer));
  EXPECT(WM_FAULT, wm_device_describe(AT(END - 8)));
  EXPECT(WM_INVAL, wm_device_describe(AT(4)));
  EXPECT(WM_FAULT, wm_counters_read(AT(0xfffffff8u)));

  EXPECT(WM_SUCCESS, wm_buffer_create_device(256, rw, &buffer));
  EXPECT(WM_FAULT, wm_buffer_read(buffer, 0, AT(END - 255), 256));
  EXPECT(WM_FAULT, wm_buffer_read(buffer, 0, AT(0xffffffffu), 2));
  EXPECT(WM_FAULT, wm_buffer_write(buffer, 0, AT(END - 1), 2));
  EXPECT(WM_INVAL, wm_buffer_read(buffer, 1, arena, 256));                              /* beyond the buffer */
  EXPECT(WM_INVAL, wm_buffer_read(buffer, UINT64_MAX, arena, 1));                       /* offset + length wraps */
  EXPECT(WM_INVAL, wm_buffer_write(buffer, UINT64_MAX - 255, arena, 256));
  EXPECT(WM_SUCCESS, wm_buffer_destroy(buffer));

  wm_submission submission;
  EXPECT(WM_FAULT, wm_commands_submit(AT(END - 8), sizeof list, &submission));
  EXPECT(WM_FAULT, wm_commands_submit(AT(0xfffffff8u), sizeof list, &submission));
  EXPECT(WM_INVAL, wm_commands_submit(AT((uintptr_t)list + 4), sizeof list[0], &submission));
  EXPECT(WM_INVAL, wm_commands_submit(list, 0, &submission));
  EXPECT(WM_INVAL, wm_commands_submit(list, sizeof list - 1, &submission));
  EXPECT(WM_INVAL, wm_commands_submit(list, 0xffffffffu, &submission));
  EXPECT(WM_FAULT, wm_commands_run(AT(END - 8), sizeof list));
  EXPECT(WM_FAULT, wm_commands_run(AT(0xfffffff8u), sizeof list));
  EXPECT(WM_INVAL, wm_commands_run(AT((uintptr_t)list + 4), sizeof list[0]));
  EXPECT(WM_INVAL, wm_commands_run(list, 0));
  EXPECT(WM_INVAL, wm_commands_run(list, sizeof list - 1));
  EXPECT(WM_INVAL, wm_commands_run(list, 0xffffffffu));
}

static void handles(uint32_t stolen) {
  wm_submission submission;
  wm_buffer buffer = shared(), freed = shared();
  EXPECT(WM_SUCCESS, wm_buffer_destroy(freed));
  const uint32_t forged[] = {0, 1, 0xffffffffu, 0x80000000u, buffer + 1, buffer ^ (1u << 20), buffer ^ (1u << 31), freed, stolen};
  for (size_t i = 0; i < sizeof forged / sizeof *forged; i++) {
    EXPECT(WM_BADF, wm_buffer_destroy(forged[i]));
    EXPECT(WM_BADF, wm_buffer_read(forged[i], 0, arena, 1));
    EXPECT(WM_BADF, wm_buffer_write(forged[i], 0, arena, 1));
    EXPECT(WM_BADF, wm_submission_wait(forged[i], 0));
    EXPECT(WM_BADF, wm_session_close(forged[i]));
    EXPECT(WM_BADF, wm_session_forward(forged[i], (wm_token[]){1}, 1, NULL));
    if (forged[i] == 0) continue; /* in a command: no tensor */
    wm_command add = {.op = WM_OP_ADD, .t = {row(forged[i], 0, 4), row(buffer, 0, 4), row(buffer, 64, 4)}};
    EXPECT(WM_BADF, submit(&add));
  }
  EXPECT(WM_BADF, wm_submission_wait(buffer, 0)); /* of another kind */
  wm_command add = {.op = WM_OP_ADD, .t = {row(buffer, 0, 4), row(buffer, 0, 4), row(buffer, 64, 4)}};
  EXPECT(WM_SUCCESS, wm_commands_submit(&add, sizeof add, &submission));
  EXPECT(WM_BUSY, wm_buffer_destroy(buffer)); /* while a submission is pending */
  EXPECT(WM_BADF, wm_buffer_destroy(submission));
  EXPECT(WM_SUCCESS, wm_submission_wait(submission, WM_FOREVER));
  EXPECT(WM_BADF, wm_submission_wait(submission, WM_FOREVER)); /* waited for already */
  EXPECT(WM_SUCCESS, wm_buffer_destroy(buffer));
}

static void tensors(void) {
  wm_buffer buffer = shared(), read_only = 0, write_only = 0;
  EXPECT(WM_SUCCESS, wm_buffer_create(arena, PAGE, WM_USAGE_READ, &read_only));
  EXPECT(WM_SUCCESS, wm_buffer_create(arena, PAGE, WM_USAGE_WRITE, &write_only));
  const wm_tensor x = row(buffer, 0, 4), out = row(buffer, 64, 4);
  const wm_command good = {.op = WM_OP_ADD, .t = {x, x, out}};
  EXPECT(WM_SUCCESS, submit(&good));

  wm_command bad;
#define BAD(expected, ...) \
  do { \
    bad = good; \
    __VA_ARGS__; \
    EXPECT(expected, submit(&bad)); \
  } while (0)

  BAD(WM_NOTSUP, bad.op = 0);
  BAD(WM_NOTSUP, bad.op = 0xffffffffu);
  BAD(WM_INVAL, bad.flags = 1);
  BAD(WM_INVAL, bad.attributes[0].u32 = 1);
  BAD(WM_INVAL, bad.t[2] = (wm_tensor){0});         /* an operand is missing */
  BAD(WM_INVAL, bad.t[3] = x);                      /* one too many */
  BAD(WM_INVAL, bad.t[5].row_stride = 1);           /* an unused operand that is not all 0 */
  BAD(WM_NOTSUP, bad.t[0].dtype = 77);
  BAD(WM_INVAL, bad.t[0].dtype = WM_I32);
  BAD(WM_INVAL, bad.t[0].rank = 0);
  BAD(WM_INVAL, bad.t[0].rank = 5);
  BAD(WM_INVAL, bad.t[0].rank = 0xffffffffu);
  BAD(WM_INVAL, bad.t[0].shape[1] = 1);             /* beyond the rank */
  BAD(WM_INVAL, bad.t[0].shape[0] = 0);
  BAD(WM_INVAL, bad.t[0].shape[0] = 0x40000000u);   /* bytes wrap to 0 in 32 bits */
  BAD(WM_INVAL, bad.t[0].offset = 8);               /* misaligned */
  BAD(WM_INVAL, bad.t[0].offset = sizeof arena);    /* past the end */
  BAD(WM_INVAL, bad.t[0].offset = UINT64_MAX - 15); /* offset + size wraps */
  BAD(WM_INVAL, bad.t[2].offset = sizeof arena - 15);
  BAD(WM_INVAL, bad.t[2].shape[0] = sizeof arena);  /* across the end */
  BAD(WM_INVAL, bad.t[2].offset = 0, bad.t[0].offset = 16, bad.t[0].shape[0] = bad.t[1].shape[0] = bad.t[2].shape[0] = 8);
  BAD(WM_PERM, bad.t[2].buffer = read_only);
  BAD(WM_PERM, bad.t[0].buffer = write_only);
  /* The product of the dimensions is 0 in 32 bits, in 64 bits, and 1 page in 64 bits. */
  const uint32_t shapes[][4] = {{65536, 65536, 1, 1}, {65536, 65536, 65536, 65536}, {0xffffffffu, 0xffffffffu, 0xffffffffu, 0xffffffffu},
                                {0x80000000u, 2, 1, 1}, {3, 0x55555556u, 1, 1}};
  for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
    for (int operand = 0; operand < 3; operand++)
      BAD(WM_INVAL, bad.t[operand].rank = 4, memcpy(bad.t[operand].shape, shapes[i], sizeof shapes[i]));
  BAD(WM_INVAL, bad.t[0].rank = bad.t[1].rank = bad.t[2].rank = 2, bad.t[0].shape[1] = bad.t[1].shape[1] = bad.t[2].shape[1] = 4,
      bad.t[0].row_stride = 0xffffffffu);
  BAD(WM_INVAL, bad.t[0].rank = 2, bad.t[0].shape[1] = 4, bad.t[0].row_stride = 1); /* rows overlap */

  /* The output of a product must be no part of its inputs, through one buffer or two on the same pages. */
  wm_tensor m = {.buffer = buffer, .dtype = WM_F32, .rank = 2, .shape = {8, 8}};
  wm_command product = {.op = WM_OP_MATMUL, .t = {m, m, m}};
  EXPECT(WM_INVAL, submit(&product));
  product.t[2].offset = 128;
  EXPECT(WM_INVAL, submit(&product));
  product.t[2].offset = 0;
  product.t[2].buffer = write_only;
  EXPECT(WM_INVAL, submit(&product));
  product.t[2].offset = 256;
  EXPECT(WM_SUCCESS, submit(&product));

  /* Nothing of a list runs if its last command is wrong. */
  memset(arena, 0, PAGE);
  ((float *)arena)[0] = 1;
  list[0] = list[1] = good;
  list[1].op = 999;
  wm_submission submission;
  EXPECT(WM_NOTSUP, wm_commands_submit(list, sizeof list, &submission));
  EXPECT(0, ((float *)arena)[16] != 0);

  EXPECT(WM_SUCCESS, wm_buffer_destroy(buffer));
  EXPECT(WM_SUCCESS, wm_buffer_destroy(read_only));
  EXPECT(WM_SUCCESS, wm_buffer_destroy(write_only));
}

/* Numbers that the device itself reads from memory. Whatever they are, it must stay inside the tensors. */
static void indices(void) {
  static const int32_t hostile[] = {-1, INT32_MIN, INT32_MAX, 1 << 30, 4096};
  wm_buffer buffer = shared();
  int32_t *batch = (int32_t *)arena, *ids = batch + 16, *sequences = batch + 32;
  wm_tensor rows = {.buffer = buffer, .dtype = WM_I32, .rank = 2, .shape = {3, 2}};
  wm_tensor id = {.buffer = buffer, .dtype = WM_I32, .offset = 64, .rank = 1, .shape = {2}};
  wm_tensor pages = {.buffer = buffer, .dtype = WM_I32, .offset = 128, .rank = 2, .shape = {2, 3}};
  wm_tensor table = {.buffer = buffer, .dtype = WM_F32, .offset = 1024, .rank = 2, .shape = {3, 8}};
  wm_tensor wide = {.buffer = buffer, .dtype = WM_F32, .offset = 4096, .rank = 2, .shape = {2, 8}};
  wm_tensor turns = {.buffer = buffer, .dtype = WM_F32, .offset = 8192, .rank = 3, .shape = {3, 2, 2}};
  wm_tensor heads = {.buffer = buffer, .dtype = WM_F32, .offset = 12288, .rank = 3, .shape = {2, 2, 4}};
  wm_tensor keys = {.buffer = buffer, .dtype = WM_F32, .offset = PAGE, .rank = 4, .shape = {2, 2, 2, 4}};
  wm_tensor values = {.buffer = buffer, .dtype = WM_F32, .offset = 2 * PAGE, .rank = 4, .shape = {2, 2, 2, 4}};
  const wm_command commands[] = {
      {.op = WM_OP_EMBED, .t = {table, id, wide, rows}},
      {.op = WM_OP_EMBED, .t = {table, id, wide}},
      {.op = WM_OP_ROPE, .t = {heads, turns, rows}},
      {.op = WM_OP_KV_APPEND, .t = {heads, heads, keys, values, rows, pages}},
      {.op = WM_OP_ATTENTION, .attributes = {{.f32 = 1}}, .t = {heads, keys, values, rows, pages, wide}},
      {.op = WM_OP_RMS_NORM, .t = {wide, row(buffer, 20480, 8), wide, rows}},
  };
  for (size_t c = 0; c < sizeof commands / sizeof *commands; c++)
    for (size_t i = 0; i < 5; i++)
      for (size_t j = 0; j < 5; j++) {
        ids[0] = hostile[i], ids[1] = hostile[j];
        for (size_t k = 0; k < 6; k++) batch[k] = hostile[(i + k * j) % 5], sequences[k] = hostile[(j + k * i) % 5];
        EXPECT(WM_SUCCESS, submit(&commands[c]));
      }
  EXPECT(WM_SUCCESS, wm_buffer_destroy(buffer));
}

static void floods(void) {
  wm_submission submission;
  size_t million = 1000000 * sizeof(wm_command);
  wm_command *many = calloc(1, million);
  if (many) EXPECT(WM_TOOBIG, wm_commands_submit(many, million, &submission));
  free(many);

  wm_buffer *held = calloc(1 << 16, sizeof *held);
  wm_errno error = WM_SUCCESS;
  size_t n = 0;
  while (n < 1 << 16 && (error = wm_buffer_create(arena, PAGE, WM_USAGE_READ, &held[n])) == WM_SUCCESS) n++;
  EXPECT(WM_MFILE, error);
  EXPECT(WM_MFILE, wm_buffer_create_device(64, WM_USAGE_READ, &held[n]));
  while (n) EXPECT(WM_SUCCESS, wm_buffer_destroy(held[--n]));
  free(held);

  wm_device_info info;
  EXPECT(WM_SUCCESS, wm_device_describe(&info));
  wm_buffer half, more;
  EXPECT(WM_SUCCESS, wm_buffer_create_device(info.memory_limit / 2, WM_USAGE_READ, &half));
  EXPECT(WM_NOMEM, wm_buffer_create_device(info.memory_limit / 2 + 1, WM_USAGE_READ, &more));
  EXPECT(WM_SUCCESS, wm_buffer_destroy(half));
}

static void models(void) {
  wm_model model;
  EXPECT(WM_NOENT, wm_model_open("another", 7, &model));
  EXPECT(WM_NOENT, wm_model_open("../default", 10, &model));
  EXPECT(WM_ILSEQ, wm_model_open("\xff\xfe", 2, &model));
  EXPECT(WM_FAULT, wm_model_open(AT(END - 1), 7, &model));
  EXPECT(WM_FAULT, wm_model_open(AT(1), 0xffffffffu, &model));
  if (wm_model_open("default", 7, &model) != WM_SUCCESS) return; /* none was granted */

  wm_model_info info;
  EXPECT(WM_SUCCESS, wm_model_describe(model, &info));
  EXPECT(WM_FAULT, wm_model_describe(model, AT(END - 4)));
  wm_session session, copy;
  EXPECT(WM_SUCCESS, wm_session_open(model, &session));
  EXPECT(WM_BADF, wm_session_open(session, &copy));

  size_t len, space = info.vocab_size * sizeof(float);
  float *logits = aligned_alloc(16, (space + 15) & ~(size_t)15);
  wm_token *tokens = calloc(info.context_length + 1, sizeof *tokens);
  EXPECT(WM_INVAL, wm_session_forward(session, tokens, 0, logits));
  EXPECT(WM_INVAL, wm_session_forward(session, &(wm_token){info.vocab_size}, 1, logits));
  EXPECT(WM_INVAL, wm_session_forward(session, &(wm_token){0xffffffffu}, 1, logits));
  EXPECT(WM_OVERFLOW, wm_session_forward(session, tokens, info.context_length + 1, logits));
  EXPECT(WM_OVERFLOW, wm_session_forward(session, tokens, 0xffffffffu, logits));
  EXPECT(WM_FAULT, wm_session_forward(session, AT(END - 4), 2, logits));
  EXPECT(WM_INVAL, wm_session_forward(session, AT(2), 1, logits));
  EXPECT(WM_INVAL, wm_session_forward(session, tokens, 1, AT((uintptr_t)logits + 4)));
  EXPECT(WM_FAULT, wm_session_forward(session, tokens, 1, AT(END - 16)));
  EXPECT(WM_FAULT, wm_session_forward(session, tokens, 1, AT(0xfffffff0u)));
  uint32_t length = 1;
  EXPECT(WM_SUCCESS, wm_session_length(session, &length));
  EXPECT(0, length);
  EXPECT(WM_SUCCESS, wm_session_forward(session, tokens, 3, logits));
  EXPECT(WM_OVERFLOW, wm_session_forward(session, tokens, info.context_length - 2, logits));
  EXPECT(WM_INVAL, wm_session_truncate(session, 4));
  EXPECT(WM_INVAL, wm_session_truncate(session, 0xffffffffu));
  EXPECT(WM_SUCCESS, wm_session_length(session, &length));
  EXPECT(3, length);

  /* Texts */
  EXPECT(WM_FAULT, wm_model_tokenize(model, AT(END - 1), 2, 0, tokens, 1, &len));
  EXPECT(WM_FAULT, wm_model_tokenize(model, "a", 1, 0, AT(END - 4), 2, &len));
  EXPECT(WM_FAULT, wm_model_tokenize(model, "a", 1, 0, tokens, 0xffffffffu, &len)); /* times 4 wraps */
  EXPECT(WM_FAULT, wm_model_tokenize(model, "a", 1, 0, tokens, 1, AT(END)));
  EXPECT(WM_INVAL, wm_model_tokenize(model, "a", 1, 4, tokens, 1, &len));
  EXPECT(WM_ILSEQ, wm_model_tokenize(model, "\xc3", 1, 0, tokens, 1, &len));
  EXPECT(WM_OVERFLOW, wm_model_tokenize(model, "a", 1, 0, NULL, 0, &len));
  EXPECT(WM_INVAL, wm_model_detokenize(model, &(wm_token){info.vocab_size}, 1, (char *)arena, PAGE, &len));
  EXPECT(WM_FAULT, wm_model_detokenize(model, tokens, 0x40000000u, (char *)arena, PAGE, &len));
  EXPECT(WM_INVAL, wm_model_vocabulary(model, AT(2), PAGE, &len));
  EXPECT(WM_FAULT, wm_model_vocabulary(model, AT(END - 4), 8, &len));
  char *out = (char *)arena;
  static const char *const wrong[] = {"", "{}", "[1]", "[{}]", "[{\"role\": \"user\"}]", "[{\"role\": 1, \"content\": \"\"}]",
                                      "[{\"role\": \"user\", \"content\": \"\", \"more\": \"\"}]", "[", "nul", "1e999"};
  for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
    EXPECT(WM_INVAL, wm_model_apply_template(model, wrong[i], strlen(wrong[i]), 0, out, PAGE, &len));
  static char nested[100000];
  memset(nested, '[', sizeof nested);
  EXPECT(WM_INVAL, wm_model_apply_template(model, nested, sizeof nested, 0, out, PAGE, &len));
  const char *surrogate = "[{\"role\": \"user\", \"content\": \"\\ud800\"}]";
  EXPECT(WM_ILSEQ, wm_model_apply_template(model, surrogate, strlen(surrogate), 0, out, PAGE, &len));
  size_t huge = (1u << 20) + 1;
  char *text = calloc(1, huge);
  EXPECT(WM_TOOBIG, wm_model_tokenize(model, text, huge, 0, tokens, 1, &len));
  free(text);

  /* A saved state, forged in every byte of its header and some after it */
  EXPECT(WM_OVERFLOW, wm_session_save(session, NULL, 0, &len));
  size_t size = len;
  uint8_t *state = malloc(size);
  EXPECT(WM_OVERFLOW, wm_session_save(session, state, size - 1, &len));
  EXPECT(WM_FAULT, wm_session_save(session, AT(END - 16), size, &len));
  EXPECT(WM_SUCCESS, wm_session_save(session, state, size, &len));
  EXPECT(WM_INVAL, wm_session_restore(session, state, 0));
  EXPECT(WM_INVAL, wm_session_restore(session, state, size - 1));
  EXPECT(WM_FAULT, wm_session_restore(session, state, 0xffffffffu));
  for (size_t i = 0; i < 256 && i < size; i++) {
    state[i] ^= 0x80;
    EXPECT(WM_INVAL, wm_session_restore(session, state, size));
    state[i] ^= 0x80;
  }
  EXPECT(WM_SUCCESS, wm_session_restore(session, state, size));
  EXPECT(WM_SUCCESS, wm_session_length(session, &length));
  EXPECT(3, length);

  EXPECT(WM_SUCCESS, wm_session_fork(session, &copy));
  EXPECT(WM_SUCCESS, wm_session_close(session));
  EXPECT(WM_BADF, wm_session_fork(session, &session));
  EXPECT(WM_SUCCESS, wm_session_forward(copy, tokens, 1, logits));
  EXPECT(WM_SUCCESS, wm_session_close(copy));
  free(state), free(tokens), free(logits);
}

int main(int argc, char **argv) {
  memset(before, POISON, PAGE);
  memset(after, POISON, PAGE);
  pointers();
  handles(argc > 1 ? (uint32_t)strtoul(argv[1], NULL, 0) : 2);
  tensors();
  indices();
  floods();
  models();
  expect(!poisoned(before) || !poisoned(after), 0, "memory beside the buffers was written", __LINE__);
  printf("%d attacks, %d let through\n", attacks, failures);
  return failures != 0;
}
