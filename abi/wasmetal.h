/* wasmetal.h: the host functions that a WebAssembly guest can import from wasmetal.
 *
 * Two interfaces: `wasi_ephemeral_gpu` (buffers and command lists) and `wasmetal_llm` (language models). Both work for
 * wasm32 and wasm64 guests: pointers and sizes have the width of the guest's own memory. WASI preview 1 stands beside
 * them for arguments, environment, standard streams and files. The guest must export its memory as "memory".
 *
 * Conventions
 *   Result      Every function returns a wm_errno. On anything but WM_SUCCESS nothing was changed and nothing was
 *               written to memory, except where a function says otherwise.
 *   Out-values  go through the last pointers. Every pointer must lie inside the memory and be aligned as its C type is,
 *               or the call gives WM_FAULT (outside) or WM_INVAL (misaligned).
 *   Handles     are opaque, never 0, valid only in the guest that got them, and never given out a second time. A handle
 *               that was freed, made up, of another kind or of another guest gives WM_BADF.
 *   Text        is UTF-8, given with its length in bytes and without a terminating zero; other bytes give WM_ILSEQ.
 *   Variable output (tokens, text, state): `out` has room for `cap` (bytes or elements as stated); the number needed is
 *               written to *len also when it is more than `cap`, and then the call gives WM_OVERFLOW and leaves `out`
 *               untouched. out = NULL with cap = 0 asks for the size.
 *   Bytes       are little-endian. Structs have the layout of C on wasm32 and wasm64 alike; reserved fields are zero.
 *   Failures    Every call can give WM_IO, and every call that needs the device WM_NODEV; a submission that they end is
 *               gone, and so is its handle.
 *   Limits      that the host set for the guest give the errno stated with each call. Reaching the limit on wall time
 *               or on device time traps.
 *
 * While the device may touch the guest's pages the guest is suspended: a submission that names a shared buffer runs
 * inside wm_wait.
 */
#ifndef WASMETAL_H
#define WASMETAL_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- Errors: the numbers of WASI preview 1 ------------------------------------------------------------------------ */

typedef uint32_t wm_errno;

#define WM_SUCCESS 0   /* Done. */
#define WM_TOOBIG 1    /* More commands in a list than the limit allows, or more than 1 MiB of text in a call. */
#define WM_AGAIN 6     /* Too many commands are pending: wait for a submission first. */
#define WM_BADF 8      /* No such handle. */
#define WM_BUSY 10     /* A pending submission uses it. */
#define WM_FAULT 21    /* A pointer, or its length, leaves the guest's memory. */
#define WM_ILSEQ 25    /* Text that is not UTF-8. */
#define WM_INVAL 28    /* A value that the call cannot take: misaligned, out of range, an impossible tensor. */
#define WM_IO 29       /* The host failed; its log says why. */
#define WM_MFILE 33    /* The guest's limit on handles is reached. */
#define WM_NODEV 43    /* The device is lost. */
#define WM_NOENT 44    /* No model of that name was granted to the guest. */
#define WM_NOMEM 48    /* The guest's limit on device memory is reached, or the device has no more. */
#define WM_NOTSUP 58   /* An op, dtype or page range that this host or device does not support. */
#define WM_OVERFLOW 61 /* The output does not fit, or the model's context is full. */
#define WM_PERM 63     /* The buffer's usage does not allow what the command does with it. */
#define WM_TIMEDOUT 73 /* The submission is still pending. */

/* ---- wasi_ephemeral_gpu ------------------------------------------------------------------------------------------- */

#define WM_GPU(name) __attribute__((import_module("wasi_ephemeral_gpu"), import_name(#name)))

typedef uint32_t wm_buffer;
typedef uint32_t wm_submission;

/* What commands may do with a buffer. */
#define WM_USAGE_READ 1u
#define WM_USAGE_WRITE 2u

/* Shares [ptr, ptr+len) of the guest's memory with the device. Nothing is copied: device and guest see the same bytes.
 * ptr and len (> 0) must be multiples of wm_device_info.page_size, or WM_INVAL; multiples of 65536 are always right.
 * usage is a set of WM_USAGE_*, not empty. The buffer stays valid when the memory grows. The guest may read and write
 * the range at any time, as the device touches it only inside wm_wait.
 * WM_FAULT, WM_INVAL, WM_MFILE, WM_NOTSUP (the driver refuses these pages). */
WM_GPU(buffer_create) wm_errno wm_buffer_create(void *ptr, size_t len, uint32_t usage, wm_buffer *buffer);

/* Allocates len (> 0) zeroed bytes of the device's own memory, which the guest cannot see.
 * WM_INVAL, WM_MFILE, WM_NOMEM. */
WM_GPU(buffer_create_device) wm_errno wm_buffer_create_device(uint64_t len, uint32_t usage, wm_buffer *buffer);

/* Gives a buffer back; its handle is no longer valid. WM_BADF; WM_BUSY while a pending submission names it. */
WM_GPU(buffer_destroy) wm_errno wm_buffer_destroy(wm_buffer buffer);

/* Copies len bytes of a device buffer, from byte `offset` on, to ptr, or from ptr into it. These are the only calls
 * that copy tensor bytes; wm_counters.bytes_copied counts them.
 * WM_BADF; WM_INVAL (the range leaves the buffer, or the buffer is shared); WM_BUSY while a pending submission names
 * the buffer. */
WM_GPU(buffer_read) wm_errno wm_buffer_read(wm_buffer buffer, uint64_t offset, void *ptr, size_t len);
WM_GPU(buffer_write) wm_errno wm_buffer_write(wm_buffer buffer, uint64_t offset, const void *ptr, size_t len);

/* Element types. The numbers are ggml's. The Q types hold rows of blocks of 32 weights in GGUF's byte layout. */
#define WM_F32 0
#define WM_F16 1
#define WM_Q4_0 2
#define WM_Q4_1 3
#define WM_Q8_0 8
#define WM_I32 26

/* A row-major array of `rank` (1 to 4) dimensions in a buffer, its last dimension contiguous. 40 bytes. */
typedef struct wm_tensor {
  wm_buffer buffer;    /* 0: no tensor (an optional operand left out; all other fields are then 0) */
  uint32_t dtype;      /* WM_F32 and so on */
  uint64_t offset;     /* of the first element in the buffer, in bytes; a multiple of 16 */
  uint32_t rank;       /* dimensions in use */
  uint32_t row_stride; /* elements from one index of the first dimension to the next; 0: rows follow one another */
  uint32_t shape[4];   /* shape[0] is the outermost; those from `rank` on are 0 */
} wm_tensor;

/* Ops. Operands stand in t[] in the order given; [step] may be left out. `step` is WM_I32 [4]: how many rows are valid,
 * the position of the first, the last row, 0; with it, an op leaves the rows that are not valid untouched. What ops
 * read as indices (ids, step, pages) is clamped to what it indexes, whatever it holds. Flags and attributes that an op
 * does not name are 0. An output may be the very same tensor as an input in the elementwise ops (add, scale, silu_mul,
 * softmax, rms_norm); any other overlap of an output is WM_INVAL. */
#define WM_OP_MATMUL 1    /* a [..,M,K], b [..,K,N], out [..,M,N]: F32 or F16. Flags WM_TRANSPOSE_A, WM_TRANSPOSE_B */
#define WM_OP_LINEAR 2    /* x F32 [T,K], weight [N,K] of any type, out F32 [T,N], [step]: out = x weight^T. WM_ACCUMULATE */
#define WM_OP_EMBED 3     /* table [N,K] of any type, ids I32 [T], out F32 [T,K], [step]: rows of the table */
#define WM_OP_RMS_NORM 4  /* x F32 [T,K], weight F32 [K], out F32 [T,K], [step]; attribute 0: epsilon (f32) */
#define WM_OP_ROPE 5      /* x F32 [T,heads,head_dim] in place, table F32 [positions,rot/2,2], step. WM_INTERLEAVED */
#define WM_OP_KV_APPEND 6 /* k, v F32 [T,kv_heads,head_dim], k_pages, v_pages [pages,page,kv_heads,head_dim], page_table I32, step */
#define WM_OP_ATTENTION 7 /* q F32 [T,heads,head_dim], k_pages, v_pages, page_table, step, out F32 [T,heads*head_dim]; attribute 0: scale (f32) */
#define WM_OP_SILU_MUL 8  /* gate, up, out F32 [T,K], [step]: out = silu(gate) * up */
#define WM_OP_ADD 9       /* a, b, out F32 of one shape */
#define WM_OP_SCALE 10    /* x, out F32 of one shape; attribute 0: factor (f32) */
#define WM_OP_SOFTMAX 11  /* x, out F32 [T,K], over the last dimension */
#define WM_OP_ARGMAX 12   /* x F32 [T,K], out I32 [T]: the index of each row's first maximum */
#define WM_OP_COPY_ROW 13 /* x F32 [T,K], out F32 [1,K], step: row step.last */

#define WM_TRANSPOSE_A 1u
#define WM_TRANSPOSE_B 2u
#define WM_ACCUMULATE 1u
#define WM_INTERLEAVED 1u

#define WM_MAX_TENSORS 6
#define WM_MAX_ATTRIBUTES 6

typedef union wm_attribute {
  uint32_t u32;
  float f32;
} wm_attribute;

/* One command. 272 bytes, 8-aligned. */
typedef struct wm_command {
  uint32_t op;
  uint32_t flags;
  wm_attribute attributes[WM_MAX_ATTRIBUTES];
  wm_tensor t[WM_MAX_TENSORS];
} wm_command;

/* Submits a list of len / sizeof(wm_command) (at least 1) commands, which take effect in order. The whole list is read
 * and checked before this returns, so that the guest may reuse its memory at once; if any command is wrong, none runs.
 * The device works on a submission that names device buffers alone from now on; one that names a shared buffer, or
 * comes after such a one, runs inside wm_wait.
 * WM_TOOBIG, WM_AGAIN, WM_MFILE; WM_BADF, WM_INVAL, WM_NOTSUP, WM_PERM (a wrong command). */
WM_GPU(submit) wm_errno wm_submit(const wm_command *commands, size_t len, wm_submission *submission);

#define WM_FOREVER UINT64_MAX

/* Waits until a submission, and every earlier one, is done, and frees its handle. A submission that had to wait for
 * this call (see wm_submit) is run to its end whatever timeout_ns; one that is under way already is waited for up to
 * timeout_ns nanoseconds, and then the call gives WM_TIMEDOUT and the submission stays pending.
 * WM_BADF, WM_TIMEDOUT. */
WM_GPU(wait) wm_errno wm_wait(wm_submission submission, uint64_t timeout_ns);

#define WM_BACKEND_CPU 0
#define WM_BACKEND_VULKAN 1
#define WM_BACKEND_METAL 2
#define WM_BACKEND_CUDA 3

/* 128 bytes. */
typedef struct wm_device_info {
  uint32_t backend;          /* WM_BACKEND_* */
  uint32_t unified;          /* 1 where device memory and host memory are the same memory */
  uint32_t page_size;        /* shared ranges begin and end at multiples of this many bytes */
  uint32_t tensor_alignment; /* tensors begin at multiples of this many bytes in their buffer */
  uint64_t memory_bytes;     /* the device's memory */
  uint64_t memory_limit;     /* how much of it this guest may hold */
  uint32_t handle_limit;     /* how many handles this guest may hold */
  uint32_t command_limit;    /* how many commands it may have in one list, and pending in all */
  uint32_t subgroup_size;    /* threads that run in lockstep */
  uint32_t reserved;
  char name[80]; /* UTF-8, zero-filled */
} wm_device_info;

WM_GPU(device_info) wm_errno wm_get_device_info(wm_device_info *info);

/* What this guest has caused since it began. 56 bytes. */
typedef struct wm_counters {
  uint64_t bytes_copied; /* tensor bytes copied between guest, host and device: 0 on the zero-copy path */
  uint64_t bytes_shared; /* bytes of pages shared with the device in place of a copy */
  uint64_t bytes_loaded; /* model weights brought into device memory for this guest */
  uint64_t host_calls;   /* calls of the functions of this header */
  uint64_t submits;
  uint64_t dispatches; /* kernels run */
  uint64_t device_ns;  /* time that the device spent, in nanoseconds */
} wm_counters;

WM_GPU(counters) wm_errno wm_get_counters(wm_counters *counters);

/* ---- wasmetal_llm ------------------------------------------------------------------------------------------------- */

#define WM_LLM(name) __attribute__((import_module("wasmetal_llm"), import_name(#name)))

typedef uint32_t wm_model;
typedef uint32_t wm_session;
typedef uint32_t wm_token;

/* A model that the host granted under this name. WM_NOENT for every other name. Opening a name again gives another
 * handle to the same model; handles last as long as the guest. WM_ILSEQ, WM_MFILE. */
WM_LLM(model_open) wm_errno wm_model_open(const char *name, size_t name_len, wm_model *model);

/* 16 bytes. */
typedef struct wm_model_info {
  uint32_t vocab_size;     /* logits and tokens have this many values */
  uint32_t context_length; /* tokens that a session can hold */
  uint32_t end_tokens;     /* how many tokens wm_model_end_tokens gives */
  uint32_t chat_template;  /* 1 where the model has a chat template */
} wm_model_info;

WM_LLM(model_info) wm_errno wm_get_model_info(wm_model model, wm_model_info *info);

/* The tokens that end a turn or a text. cap and *len count tokens. WM_OVERFLOW. */
WM_LLM(model_end_tokens) wm_errno wm_model_end_tokens(wm_model model, wm_token *out, size_t cap, size_t *len);

/* All tokens' bytes at once: uint32_t offsets[vocab_size + 1], then the bytes; token i is bytes offsets[i] to
 * offsets[i + 1], counted from the end of the offsets. With it, a guest turns tokens into text without a host call.
 * cap and *len count bytes. A token's bytes need not be whole characters. WM_OVERFLOW. */
WM_LLM(vocabulary) wm_errno wm_vocabulary(wm_model model, uint32_t *out, size_t cap, size_t *len);

/* Text to tokens. WM_PARSE_SPECIAL: control tokens written out in the text (such as <|im_end|>) become those tokens, as
 * a chat template's output needs; plain text should go without. WM_ADD_BOS: begin with the model's own beginning-of-text token, if it
 * wants one. cap and *len count tokens. WM_OVERFLOW, WM_ILSEQ, WM_INVAL (unknown flags). */
#define WM_PARSE_SPECIAL 1u
#define WM_ADD_BOS 2u
WM_LLM(tokenize)
wm_errno wm_tokenize(wm_model model, const char *text, size_t text_len, uint32_t flags, wm_token *out, size_t cap, size_t *len);

/* n tokens to text. cap and *len count bytes. WM_OVERFLOW, WM_INVAL (a token that is not below vocab_size). */
WM_LLM(detokenize)
wm_errno wm_detokenize(wm_model model, const wm_token *tokens, size_t n, char *out, size_t cap, size_t *len);

/* A conversation to the text that the model was trained on. messages is a JSON array of objects with the strings "role"
 * and "content". WM_GENERATION_PROMPT: end with the opening of the assistant's turn.
 * WM_INVAL (not such an array, or the template refuses it), WM_NOTSUP (the model has no template), WM_OVERFLOW. */
#define WM_GENERATION_PROMPT 1u
WM_LLM(apply_template)
wm_errno wm_apply_template(wm_model model, const char *messages, size_t messages_len, uint32_t flags, char *out, size_t cap, size_t *len);

/* A session: a sequence of tokens and the model's state after them (the KV cache, in device memory). Starts empty.
 * WM_BADF, WM_MFILE, WM_NOMEM. */
WM_LLM(session_open) wm_errno wm_session_open(wm_model model, wm_session *session);
WM_LLM(session_close) wm_errno wm_session_close(wm_session session);
WM_LLM(session_length) wm_errno wm_session_length(wm_session session, uint32_t *length);

/* Appends n (at least 1) tokens. The device writes the logits after the last one, float[vocab_size], to `logits`, which
 * must be 16-aligned; NULL: they are not wanted. Use one and the same place for them from call to call.
 * WM_INVAL (no tokens, a token that is not below vocab_size, misaligned), WM_OVERFLOW (the context has no room for all
 * n; none was taken), WM_FAULT, WM_NOMEM. After WM_IO or WM_NODEV the session's state is undefined: close it. */
WM_LLM(forward) wm_errno wm_forward(wm_session session, const wm_token *tokens, size_t n, float *logits);

/* A new session with the same tokens and state. What the two have in common is held once. WM_MFILE, WM_NOMEM. */
WM_LLM(fork) wm_errno wm_fork(wm_session session, wm_session *copy);

/* Forgets all but the first n tokens. WM_INVAL if it has fewer. */
WM_LLM(truncate) wm_errno wm_truncate(wm_session session, uint32_t n);

/* The session's tokens and state as bytes, for restore under the same model. A copy of the KV cache: counted in
 * wm_counters.bytes_copied. cap and *len count bytes. WM_OVERFLOW. */
WM_LLM(save) wm_errno wm_save(wm_session session, void *out, size_t cap, size_t *len);

/* Replaces the session's tokens and state by saved ones. WM_INVAL where the bytes are no state of this model; the
 * session is then as it was. WM_NOMEM. */
WM_LLM(restore) wm_errno wm_restore(wm_session session, const void *data, size_t len);

#ifdef __cplusplus
}
#endif

#endif
