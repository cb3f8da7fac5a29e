"""The interface ``wasmetal_llm``, described."""

from __future__ import annotations

from wasmetal.documented import Documented
from wasmetal.host.abi.errors import Errno
from wasmetal.host.abi.schema import (
    CHAR,
    FLOAT,
    SIZE_T,
    UINT32,
    UINT64,
    VOID,
    Alias,
    Constant,
    Enumeration,
    Field,
    Function,
    Handle,
    Interface,
    Param,
    Struct,
    reads,
    returns,
    writes,
)


class TokenizeFlags(Documented):
    """Flags of wm_model_tokenize."""

    PARSE_SPECIAL = 1, "Control tokens written out in the text, such as <|im_end|>, become those tokens."
    ADD_BOS = 2, "Begin with the model's beginning-of-text token, if it wants one."


class TemplateFlags(Documented):
    """Flags of wm_model_apply_template."""

    GENERATION_PROMPT = 1, "End with the opening of the assistant's turn."


MODEL, SESSION, TOKEN = Handle("model"), Handle("session"), Alias("token")
TOKENIZE_FLAGS = Enumeration("tokenize_flags", TokenizeFlags, flags=True)
TEMPLATE_FLAGS = Enumeration("template_flags", TemplateFlags, flags=True)

MODEL_INFO = Struct(
    "model_info",
    "A model's sizes.",
    (
        Field("vocab_size", UINT32, "the number of logits; tokens are less than this"),
        Field("context_length", UINT32, "tokens that a session can hold"),
        Field("end_tokens", UINT32, "how many tokens wm_model_end_tokens gives"),
        Field("chat_template", UINT32, "1 if the model has a chat template"),
    ),
)

MAX_TOP_ROWS = Constant("MAX_TOP_ROWS", 16, "The most tokens after which wm_session_forward_top gives logits.")
MAX_TOP = Constant("MAX_TOP", 64, "The most logits that wm_session_forward_top finds.")
CANDIDATE = Struct(
    "candidate",
    "A token that may be next.",
    (Field("token", TOKEN), Field("logit", FLOAT, "the larger, the likelier")),
)
LOGIT_TOTALS = Struct(
    "logit_totals",
    "What makes a probability of a logit: it is exp(logit - max) / sum.",
    (Field("max", FLOAT, "the largest logit"), Field("sum", FLOAT, "of exp(logit - max) over the whole vocabulary")),
)
SAMPLING = Struct(
    "sampling",
    "How wm_session_generate chooses tokens: like the library's sample().",
    (
        Field("seed", UINT64, "state of the random number generator, which is advanced"),
        Field("temperature", FLOAT, "0: always the likeliest token"),
        Field("top_k", UINT32, "keep the k likeliest, 1 to WM_MAX_TOP"),
        Field("top_p", FLOAT, "of those, keep the likeliest that together have this much probability; 1: all"),
        Field("min_p", FLOAT, "of those, keep what is at least this likely, relative to the likeliest; 0: all"),
    ),
)
NO_TOKEN = Constant("NO_TOKEN", 0xFFFFFFFF, "No token of any vocabulary.")

_MODEL, _SESSION = Param("model", MODEL), Param("session", SESSION)
_CAP, _LENGTH = Param("cap", SIZE_T), returns("len", SIZE_T)

LLM = Interface(
    "wasmetal_llm",
    "LLM",
    "Language models that the host granted by name, and sessions, each with its own KV cache.",
    (
        MODEL,
        SESSION,
        TOKEN,
        Function(
            "model_open",
            (reads("name", CHAR), Param("name_len", SIZE_T), returns("model", MODEL)),
            """
            Opens a model that the host granted under this name. Opening a name again gives another handle to the same
            model. Handles last as long as the guest.
            """,
            {
                Errno.NOENT: "",
                Errno.NOTSUP: "it is not a language model",
                Errno.ILSEQ: "",
                Errno.TOOBIG: "",
                Errno.MFILE: "",
            },
        ),
        MODEL_INFO,
        Function("model_describe", (_MODEL, returns("info", MODEL_INFO)), "The model's sizes."),
        Function(
            "model_end_tokens",
            (_MODEL, writes("out", TOKEN), _CAP, _LENGTH),
            "The tokens that end a turn or a text. cap and *len count tokens.",
            {Errno.OVERFLOW: ""},
        ),
        Function(
            "model_vocabulary",
            (_MODEL, writes("out", UINT32), _CAP, _LENGTH),
            """
            The bytes of all tokens at once: uint32_t offsets[vocab_size + 1], then the bytes. Token i is bytes
            offsets[i] to offsets[i + 1], counted from the end of the offsets. With it, a guest turns tokens into text
            without a host call. A token's bytes need not be whole characters. cap and *len count bytes.
            """,
            {Errno.OVERFLOW: ""},
        ),
        TOKENIZE_FLAGS,
        Function(
            "model_tokenize",
            (
                *(_MODEL, reads("text", CHAR), Param("text_len", SIZE_T)),
                *(Param("flags", TOKENIZE_FLAGS), writes("out", TOKEN), _CAP, _LENGTH),
            ),
            """
            Text to tokens. The output of a chat template needs WM_PARSE_SPECIAL; plain text should go without. cap and
            *len count tokens.
            """,
            {Errno.INVAL: "unknown flags", Errno.ILSEQ: "", Errno.TOOBIG: "", Errno.OVERFLOW: ""},
        ),
        Function(
            "model_detokenize",
            (_MODEL, reads("tokens", TOKEN), Param("n", SIZE_T), writes("out", CHAR), _CAP, _LENGTH),
            "n tokens to text. cap and *len count bytes.",
            {Errno.INVAL: "a token is not less than vocab_size", Errno.TOOBIG: "", Errno.OVERFLOW: ""},
        ),
        TEMPLATE_FLAGS,
        Function(
            "model_apply_template",
            (
                *(_MODEL, reads("messages", CHAR), Param("messages_len", SIZE_T)),
                *(Param("flags", TEMPLATE_FLAGS), writes("out", CHAR), _CAP, _LENGTH),
            ),
            """
            A conversation to the text that the model was trained on. messages is a JSON array of objects with the
            strings "role" and "content". cap and *len count bytes.
            """,
            {
                Errno.INVAL: "messages is not such an array, the template refuses it, unknown flags",
                Errno.NOTSUP: "the model has no template",
                Errno.ILSEQ: "",
                Errno.TOOBIG: "",
                Errno.OVERFLOW: "",
            },
        ),
        Function(
            "session_open",
            (_MODEL, returns("session", SESSION)),
            """
            Opens a session: a sequence of tokens and the model's state after them (the KV cache, in device memory). It
            begins empty.
            """,
            {Errno.MFILE: "", Errno.NOMEM: ""},
        ),
        Function("session_close", (_SESSION,), "Releases a session. Its handle is no longer valid."),
        Function("session_length", (_SESSION, returns("length", UINT32)), "How many tokens the session holds."),
        Function(
            "session_forward",
            (_SESSION, reads("tokens", TOKEN), Param("n", SIZE_T), writes("logits", FLOAT)),
            """
            Appends n (at least 1) tokens. The device writes the logits after the last one, float[vocab_size], to
            `logits`, which must be aligned to 16 bytes; NULL: they are not wanted. Calls are cheaper if they all name
            the same place for the logits.

            After WM_IO or WM_NODEV the session's state is undefined: close it.
            """,
            {
                Errno.INVAL: "no tokens, a token is not less than vocab_size",
                Errno.OVERFLOW: "the context has no room for all n; none was taken",
                Errno.TOOBIG: "",
                Errno.NOMEM: "",
                Errno.NOTSUP: "the driver refuses the pages of `logits`",
            },
        ),
        MAX_TOP,
        MAX_TOP_ROWS,
        NO_TOKEN,
        CANDIDATE,
        LOGIT_TOTALS,
        Function(
            "session_forward_top",
            (
                *(_SESSION, reads("tokens", TOKEN), Param("n", SIZE_T)),
                *(Param("rows", UINT32), Param("k", UINT32)),
                *(writes("top", CANDIDATE), writes("totals", LOGIT_TOTALS)),
            ),
            """
            Like wm_session_forward, but the device finds the k (1 to WM_MAX_TOP) largest logits and the others stay
            there. They come in descending order, equal ones by token. Where the vocabulary has fewer than k tokens,
            WM_NO_TOKEN and -infinity take their place.

            The logits after each of the last `rows` (1 to WM_MAX_TOP_ROWS, at most n) tokens are given: wm_candidate
            top[rows][k] and wm_logit_totals totals[rows], the last token's at the end.
            """,
            {
                Errno.INVAL: "no tokens, a token is not less than vocab_size, rows or k is out of range",
                Errno.OVERFLOW: "the context has no room for all n; none was taken",
                Errno.TOOBIG: "",
                Errno.NOMEM: "",
            },
        ),
        SAMPLING,
        Function(
            "session_generate",
            (
                *(_SESSION, reads("tokens", TOKEN), Param("n", SIZE_T)),
                *(writes("sampling", SAMPLING), reads("stops", TOKEN), Param("n_stops", SIZE_T)),
                *(writes("out", TOKEN), _CAP, _LENGTH),
            ),
            """
            Appends n (at least 1) tokens, then chooses up to cap (at least 1) tokens, and appends each to choose the
            next: several tokens for one call. It ends early when it has chosen one of `stops`, when the context is
            full, or after 0.1 s, 0.2 if others use the model too, so that their text can be shown. The last token that
            it gives is not appended: pass it as the first of the next call. *len says how many there are, also after an
            error.
            """,
            {
                Errno.INVAL: "no tokens, no room, a token is not less than vocab_size, sampling is out of range",
                Errno.OVERFLOW: "the context has no room for all n; none was taken",
                Errno.TOOBIG: "",
                Errno.NOMEM: "",
            },
        ),
        Function(
            "session_fork",
            (_SESSION, returns("copy", SESSION)),
            "A new session with the same tokens and state. What the two have in common is held once.",
            {Errno.MFILE: "", Errno.NOMEM: ""},
        ),
        Function(
            "session_truncate",
            (_SESSION, Param("n", UINT32)),
            "Drops all but the first n tokens.",
            {Errno.INVAL: "the session has fewer"},
        ),
        Function(
            "session_save",
            (_SESSION, writes("out", VOID), _CAP, _LENGTH),
            """
            The session's tokens and state as bytes, for wm_session_restore with the same model. They are a copy of the
            KV cache, counted in wm_counters.bytes_copied. cap and *len count bytes.
            """,
            {Errno.OVERFLOW: ""},
        ),
        Function(
            "session_restore",
            (_SESSION, reads("data", VOID), Param("len", SIZE_T)),
            "Replaces the session's tokens and state by saved ones. If it fails, the session is as it was before.",
            {Errno.INVAL: "the bytes are no state of this model", Errno.NOMEM: ""},
        ),
    ),
)
