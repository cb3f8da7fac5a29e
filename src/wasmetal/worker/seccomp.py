"""A seccomp filter: system calls that a worker on Linux does without fail in it with EPERM.

It lists what is denied, not what is allowed: which calls the drivers of GPUs make is documented nowhere.
"""

from __future__ import annotations

import ctypes
import platform
import struct
from collections.abc import Iterable

_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2
_LOAD, _IF_EQUAL, _IF_ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06  # of classic BPF
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data
_ALLOW, _DENY, _NO_SUCH_CALL = 0x7FFF0000, 0x00050001, 0x00050026  # the last two with EPERM and ENOSYS
_CLONE_THREAD = 0x10000

# The architecture's audit number, and the numbers of clone and of what is denied, by machine.
_AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_CLONE = {"x86_64": 56, "aarch64": 220}
_CLONE3 = 435
_DENIED: dict[str, dict[str, int]] = {
    "x86_64": {
        **{"socket": 41, "connect": 42, "bind": 49, "listen": 50, "socketpair": 53},
        **{"fork": 57, "vfork": 58, "execve": 59, "execveat": 322, "kill": 62, "tkill": 200},
        **{"ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311},
        **{"pidfd_send_signal": 424, "pidfd_open": 434, "pidfd_getfd": 438},
        **{"io_uring_setup": 425, "bpf": 321, "userfaultfd": 323, "perf_event_open": 298},
        **{"add_key": 248, "request_key": 249, "keyctl": 250},
        **{"mount": 165, "umount2": 166, "unshare": 272, "setns": 308, "open_by_handle_at": 304},
        **{"kexec_load": 246, "init_module": 175, "finit_module": 313},
    },
    "aarch64": {
        **{"socket": 198, "connect": 203, "bind": 200, "listen": 201, "socketpair": 199},
        **{"execve": 221, "execveat": 281, "kill": 129, "tkill": 130},
        **{"ptrace": 117, "process_vm_readv": 270, "process_vm_writev": 271},
        **{"pidfd_send_signal": 424, "pidfd_open": 434, "pidfd_getfd": 438},
        **{"io_uring_setup": 425, "bpf": 280, "userfaultfd": 282, "perf_event_open": 241},
        **{"add_key": 217, "request_key": 218, "keyctl": 219},
        **{"mount": 40, "umount2": 39, "unshare": 97, "setns": 268, "open_by_handle_at": 265},
        **{"kexec_load": 104, "init_module": 105, "finit_module": 273},
    },
}
_FOREIGN = 0x40000000
"""Numbers from here on are those of x86-64's other calling convention."""

_libc = ctypes.CDLL(None, use_errno=True)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_char_p))


def restrict() -> bool:
    """Deny this thread, and threads that it starts from now on, network, new processes and access to other ones.

    Returns False if the kernel or the processor has no such filter. PR_SET_NO_NEW_PRIVS must be set.
    """
    machine = platform.machine()
    if machine not in _DENIED:
        return False
    code = _filter(_AUDIT[machine], _CLONE[machine], _DENIED[machine].values())
    program = _Program(len(code) // 8, code)
    return bool(_libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0) == 0)


def _filter(architecture: int, clone: int, denied: Iterable[int]) -> bytes:
    lines = [(_LOAD, 0, 0, _ARCHITECTURE), (_IF_EQUAL, 1, 0, architecture), (_RETURN, 0, 0, _DENY)]
    lines += [(_LOAD, 0, 0, _NUMBER), (_IF_ANY_BIT, 0, 1, _FOREIGN), (_RETURN, 0, 0, _DENY)]
    for number in denied:
        lines += [(_IF_EQUAL, 0, 1, number), (_RETURN, 0, 0, _DENY)]
    # glibc then starts threads with clone, whose flags a filter can see.
    lines += [(_IF_EQUAL, 0, 1, _CLONE3), (_RETURN, 0, 0, _NO_SUCH_CALL)]
    lines += [(_IF_EQUAL, 0, 3, clone), (_LOAD, 0, 0, _FIRST_ARGUMENT)]
    lines += [(_IF_ANY_BIT, 1, 0, _CLONE_THREAD), (_RETURN, 0, 0, _DENY), (_RETURN, 0, 0, _ALLOW)]
    return b"".join(struct.pack("<HBBI", *line) for line in lines)
