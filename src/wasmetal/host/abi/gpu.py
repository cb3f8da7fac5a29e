"""The interface ``wasmetal_gpu``, described."""

from __future__ import annotations

from wasmetal.documented import Documented
from wasmetal.host.abi.errors import Errno
from wasmetal.host.abi.ops import OPS
from wasmetal.host.abi.schema import (
    CHAR,
    FLOAT,
    SIZE_T,
    UINT32,
    UINT64,
    VOID,
    Constant,
    Enumeration,
    Field,
    Function,
    Handle,
    Interface,
    Param,
    Struct,
    Union,
    reads,
    returns,
    writes,
)
from wasmetal.kernels.dtypes import DType


class Usage(Documented):
    """What commands may do with a buffer: a set of these."""

    READ = 1, "Read from it."
    WRITE = 2, "Write to it."


class Backend(Documented):
    """What drives a device."""

    CPU = 0
    VULKAN = 1
    METAL = 2
    CUDA = 3


BUFFER, SUBMISSION = Handle("buffer"), Handle("submission")
USAGE = Enumeration("usage", Usage, "USAGE_", flags=True)
DTYPE = Enumeration(
    "dtype",
    DType,
    doc="Element types. The numbers are ggml's, and those with blocks hold rows of weights in GGUF's byte layout; only "
    "Q8_16 is not of ggml.",
)
BACKEND = Enumeration("backend", Backend, "BACKEND_")
FOREVER = Constant("FOREVER", 2**64 - 1, "For wm_submission_wait: no timeout.")
MAX_TENSORS, MAX_ATTRIBUTES = Constant("MAX_TENSORS", 6), Constant("MAX_ATTRIBUTES", 6)

TENSOR = Struct(
    "tensor",
    "A row-major array of `rank` (1 to 4) dimensions in a buffer, its last dimension contiguous.",
    (
        Field("buffer", BUFFER, "0: no tensor (an optional operand left out; all other fields are 0 then)"),
        Field("dtype", DTYPE, "WM_F32 and so on"),
        Field("offset", UINT64, "of the first element in the buffer, in bytes; a multiple of 16"),
        Field("rank", UINT32, "number of dimensions"),
        Field("row_stride", UINT32, "elements from one index of the first dimension to the next; 0: packed"),
        Field("shape", UINT32, "shape[0] is the outermost; those from `rank` on are 0", 4),
    ),
)
ATTRIBUTE = Union("attribute", ((UINT32, "u32"), (FLOAT, "f32")), "A parameter of an op. So far all of them are f32.")
COMMAND = Struct(
    "command",
    "One op on tensors.",
    (
        Field("op", UINT32, "WM_OP_ADD and so on"),
        Field("flags", UINT32, "a set of the op's flags"),
        Field("attributes", ATTRIBUTE, count=MAX_ATTRIBUTES),
        Field("t", TENSOR, "the operands", MAX_TENSORS),
    ),
)
DEVICE_INFO = Struct(
    "device_info",
    "What the device is, and this guest's limits.",
    (
        Field("backend", BACKEND, "WM_BACKEND_*"),
        Field("unified", UINT32, "1 if device memory and host memory are the same memory"),
        Field("page_size", UINT32, "shared ranges begin and end at multiples of this many bytes"),
        Field("tensor_alignment", UINT32, "tensors begin at multiples of this many bytes in their buffer"),
        Field("memory_bytes", UINT64, "the device's memory"),
        Field("memory_limit", UINT64, "how much of it this guest may hold"),
        Field("handle_limit", UINT32, "how many handles this guest may hold"),
        Field("command_limit", UINT32, "how many commands it may have in one list, and pending in all"),
        Field("subgroup_size", UINT32, "threads of a subgroup (a warp, wave or simdgroup)"),
        Field("reserved", UINT32),
        Field("name", CHAR, "UTF-8, filled up with zeros", 80),
    ),
)
COUNTERS = Struct(
    "counters",
    "What this guest has caused since it began.",
    (
        Field("bytes_copied", UINT64, "tensor bytes copied between guest, host and device: 0 on the zero-copy path"),
        Field("bytes_shared", UINT64, "bytes of pages shared with the device in place of a copy"),
        Field("bytes_loaded", UINT64, "model weights brought into device memory for this guest"),
        Field("host_calls", UINT64, "calls of the functions of this header"),
        Field("submits", UINT64, "submissions to the device"),
        Field("dispatches", UINT64, "kernels run"),
        Field("device_ns", UINT64, "time that the device was busy, in nanoseconds"),
    ),
)

_COPY_ERRORS = {
    Errno.INVAL: "the range leaves the buffer, or the buffer is shared",
    Errno.BUSY: "a pending submission names the buffer",
}

GPU = Interface(
    "wasmetal_gpu",
    "GPU",
    "Buffers and command lists for a guest whose linear memory the device sees.",
    (
        BUFFER,
        SUBMISSION,
        USAGE,
        Function(
            "buffer_create",
            (writes("ptr", VOID), Param("len", SIZE_T), Param("usage", USAGE), returns("buffer", BUFFER)),
            """
            Shares [ptr, ptr + len) of the guest's memory with the device. Nothing is copied: device and guest see the
            same bytes. ptr and len must be multiples of wm_device_info.page_size; multiples of 65536 are right on every
            host. usage is a set of WM_USAGE_*, not empty.

            The guest may read and write the range at any time, because the device touches it only inside
            wm_submission_wait and wm_commands_run. The buffer stays valid when the memory grows.
            """,
            {
                Errno.INVAL: "ptr or len is not a multiple of the page size, len is 0, bad usage",
                Errno.MFILE: "",
                Errno.NOMEM: "",
                Errno.NOTSUP: "the driver refuses these pages",
            },
        ),
        Function(
            "buffer_create_device",
            (Param("len", UINT64), Param("usage", USAGE), returns("buffer", BUFFER)),
            "Allocates len zeroed bytes of device memory, which the guest cannot address.",
            {Errno.INVAL: "len is 0, bad usage", Errno.MFILE: "", Errno.NOMEM: ""},
        ),
        Function(
            "buffer_destroy",
            (Param("buffer", BUFFER),),
            "Releases a buffer. Its handle is no longer valid. Pages that were shared stay the guest's, unchanged.",
            {Errno.BUSY: "a pending submission names the buffer"},
        ),
        Function(
            "buffer_read",
            (Param("buffer", BUFFER), Param("offset", UINT64), writes("ptr", VOID), Param("len", SIZE_T)),
            """
            Copies len bytes of a device buffer, from byte `offset` on, to ptr. This and wm_buffer_write are the only
            calls that copy tensor bytes; wm_counters.bytes_copied counts them.
            """,
            _COPY_ERRORS,
        ),
        Function(
            "buffer_write",
            (Param("buffer", BUFFER), Param("offset", UINT64), reads("ptr", VOID), Param("len", SIZE_T)),
            "Copies len bytes from ptr into a device buffer, from byte `offset` on.",
            _COPY_ERRORS,
        ),
        DTYPE,
        TENSOR,
        OPS,
        MAX_TENSORS,
        MAX_ATTRIBUTES,
        ATTRIBUTE,
        COMMAND,
        Function(
            "commands_submit",
            (reads("commands", COMMAND), Param("len", SIZE_T), returns("submission", SUBMISSION)),
            """
            Submits a list of commands, which take effect in order. len is its length in bytes: a positive multiple of
            sizeof(wm_command). The whole list is read and checked before this returns, so the guest may reuse its
            memory at once; if any command is wrong, none runs.

            A submission that names device buffers only starts at once; if it is long, or other guests have used the
            device less, the rest of it runs inside wm_submission_wait. One that names a shared buffer, or that follows
            such a one, runs inside wm_submission_wait.
            """,
            {
                Errno.TOOBIG: "",
                Errno.AGAIN: "",
                Errno.MFILE: "",
                Errno.NOMEM: "",
                Errno.BADF: "a command names no live buffer",
                Errno.INVAL: "bad len, or a wrong command",
                Errno.NOTSUP: "an unknown op or dtype, or more than the device can do",
                Errno.PERM: "",
            },
        ),
        Function(
            "commands_run",
            (reads("commands", COMMAND), Param("len", SIZE_T)),
            """
            Submits a list of commands and waits until it, and every earlier submission, is complete: like
            wm_commands_submit and wm_submission_wait with WM_FOREVER, in a single call and without a handle.
            """,
            {
                Errno.TOOBIG: "",
                Errno.AGAIN: "",
                Errno.NOMEM: "",
                Errno.BADF: "a command names no live buffer",
                Errno.INVAL: "bad len, or a wrong command",
                Errno.NOTSUP: "an unknown op or dtype, or more than the device can do",
                Errno.PERM: "",
            },
        ),
        FOREVER,
        Function(
            "submission_wait",
            (Param("submission", SUBMISSION), Param("timeout_ns", UINT64)),
            """
            Waits until a submission, and every earlier one, is complete, and frees its handle. A submission that names
            a shared buffer, or that follows such a one, runs to its end whatever timeout_ns is. Any other is waited for
            up to timeout_ns nanoseconds; if that is too short, it stays pending and its handle valid.
            """,
            {Errno.TIMEDOUT: ""},
        ),
        BACKEND,
        DEVICE_INFO,
        Function("device_describe", (returns("info", DEVICE_INFO),), "What the device is."),
        COUNTERS,
        Function("counters_read", (returns("counters", COUNTERS),), "What the guest has caused."),
    ),
)
