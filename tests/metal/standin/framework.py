"""The classes of Metal that the device uses, and Metal's rules for them."""

from __future__ import annotations

import hashlib
import itertools
import json
import time
import weakref
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tests.metal.shim import Function as Kernel
from tests.metal.shim import ShimCompileError, ShimError, compile_library
from tests.metal.standin.bridge import (
    Object,
    Pool,
    RuleError,
    Struct,
    Varlist,
    as_the_runtime_says,
    calls,
    not_in_wheel,
    struct,
    table,
)
from tests.metal.standin.foundation import NSError
from tests.metal.standin.gpu import Gpu, Watch, accessible, memory, page_aligned

FUNCTIONS = ("MTLCopyAllDevices", "MTLSizeMake")
STRUCTS = ("MTLSize",)

CONSTANT_ALIGNMENT = 32
"""Of an offset to a ``constant`` argument; the strictest of any Mac (Metal feature set tables)."""
DEVICE_ALIGNMENT = 16
"""Of an offset to a ``device`` argument: as its type, of which the widest is float4."""


def _constant(name: str) -> int:
    return table().constants[name]


def rule(kept: bool, broken: str) -> None:
    if not kept:
        raise RuleError(broken)


class CompileOptions(Object):
    """MTLCompileOptions."""

    def __init__(self) -> None:
        self.told: dict[str, int] = {}

    @not_in_wheel("v", "q")
    def setMathMode_(self, mode: int) -> None:
        self.told["mathMode"] = mode

    @not_in_wheel("v", "q")
    def setMathFloatingPointFunctions_(self, functions: int) -> None:
        self.told["mathFloatingPointFunctions"] = functions

    @not_in_wheel("v", "Q")
    def setLanguageVersion_(self, version: int) -> None:
        self.told["languageVersion"] = version


class ComputePipelineDescriptor(Object):
    """MTLComputePipelineDescriptor."""

    function: Function | None = None
    archives: tuple[BinaryArchive, ...] = ()
    indirect = False

    @not_in_wheel("v", "Z")
    def setSupportIndirectCommandBuffers_(self, indirect: bool) -> None:
        self.indirect = indirect

    @not_in_wheel("v", "@")
    def setComputeFunction_(self, function: Function) -> None:
        self.function = function

    @not_in_wheel("v", "@")
    def setBinaryArchives_(self, archives: list[BinaryArchive]) -> None:
        self.archives = tuple(archives)


class BinaryArchiveDescriptor(Object):
    """MTLBinaryArchiveDescriptor."""

    url: Any = None

    @not_in_wheel("v", "@")
    def setUrl_(self, url: Any) -> None:
        self.url = url


class IndirectCommandBufferDescriptor(Object):
    """MTLIndirectCommandBufferDescriptor."""

    def __init__(self) -> None:
        self.told: dict[str, int] = {}

    @not_in_wheel("v", "Q")
    def setCommandTypes_(self, types: int) -> None:
        self.told["types"] = types

    @not_in_wheel("v", "Z")
    def setInheritBuffers_(self, inherit: bool) -> None:
        self.told["buffers"] = inherit

    @not_in_wheel("v", "Z")
    def setInheritPipelineState_(self, inherit: bool) -> None:
        self.told["pipeline"] = inherit

    @not_in_wheel("v", "Q")
    def setMaxKernelBufferBindCount_(self, count: int) -> None:
        self.told["count"] = count


class ResidencySetDescriptor(Object):
    """MTLResidencySetDescriptor."""


class Device(Object):
    """A GPU."""

    protocol = "MTLDevice"

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu

    def name(self) -> str:
        return self._gpu.name

    def hasUnifiedMemory(self) -> bool:
        return True

    def maxBufferLength(self) -> int:
        return self._gpu.max_buffer_length

    def recommendedMaxWorkingSetSize(self) -> int:
        return self._gpu.working_set

    def currentAllocatedSize(self) -> int:
        return sum(self._gpu.live.values())

    def supportsFamily_(self, family: int) -> bool:
        return family in (_constant(f"MTLGPUFamily{name}") for name in self._gpu.families)

    def newCommandQueue(self) -> CommandQueue | None:
        return CommandQueue(self._gpu) if self._gpu.has_queues else None

    def newSharedEvent(self) -> SharedEvent:
        return SharedEvent(self._gpu)

    def newEvent(self) -> Event:
        return Event()

    def newResidencySetWithDescriptor_error_(self, descriptor: ResidencySetDescriptor) -> tuple[Any, Any]:
        if not self._gpu.has_residency:
            return None, NSError("MTLErrorDomain", 1, "residency sets are not supported")
        return ResidencySet(self._gpu), None

    def newBufferWithBytesNoCopy_length_options_deallocator_(
        self, pages: Any, length: int, options: int, deallocator: Any
    ) -> Buffer | None:
        shared = options & (3 << _constant("MTLResourceStorageModeShift")) == _constant("MTLResourceStorageModeShared")
        rule(shared, "bytesNoCopy: only shared storage lets host and GPU see the same bytes")
        address = _address(pages)
        rule(page_aligned(address), f"bytesNoCopy: {address:#x} is not the address of a page")
        rule(length > 0 and page_aligned(length), f"bytesNoCopy: {length} bytes are no whole number of pages")
        rule(length <= self._gpu.max_buffer_length, f"bytesNoCopy: {length} bytes exceed maxBufferLength")
        if self._gpu.nil_buffer or not accessible([(address, length)], write=False):
            return None
        if self._gpu.empty_buffer:
            return Buffer(self._gpu, address, 0)
        return Buffer(self._gpu, address, length, copied=self._gpu.copied_buffer)

    def newLibraryWithSource_options_error_(self, source: str, options: CompileOptions) -> tuple[Any, Any]:
        safe = {
            "mathMode": _constant("MTLMathModeSafe"),
            "mathFloatingPointFunctions": _constant("MTLMathFloatingPointFunctionsPrecise"),
        }
        rule(safe.items() <= options.told.items(), "kernels are to be compiled with fast math off")
        if self._gpu.simdgroups == "none" and "simdgroup_matrix" in source:
            return None, NSError("MTLLibraryErrorDomain", 3, "no simdgroup matrices here")
        if self._gpu.compile_error:
            return None, NSError("MTLLibraryErrorDomain", 3, self._gpu.compile_error)
        try:
            return Library(source), None
        except ShimCompileError as error:
            return None, NSError("MTLLibraryErrorDomain", 3, str(error))

    def newIndirectCommandBufferWithDescriptor_maxCommandCount_options_(
        self, descriptor: IndirectCommandBufferDescriptor, count: int, options: int
    ) -> IndirectCommandBuffer | None:
        told, dispatches = descriptor.told, _constant("MTLIndirectCommandTypeConcurrentDispatch")
        rule(told.get("types") == dispatches, "the stand-in has concurrent dispatches in threadgroups only")
        rule(told.get("buffers") is told.get("pipeline") is False, "commands are to bring all that they use")
        rule(1 <= count <= 16384, f"an indirect command buffer of {count} commands")
        return None if self._gpu.indirect == "none" else IndirectCommandBuffer(self._gpu, told["count"], count)

    def newBinaryArchiveWithDescriptor_error_(self, descriptor: BinaryArchiveDescriptor) -> tuple[Any, Any]:
        if not self._gpu.has_archives:
            return None, NSError("MTLBinaryArchiveDomain", 4, "binary archives are not supported")
        if descriptor.url is None:
            return BinaryArchive(self._gpu, set()), None
        try:
            return BinaryArchive(self._gpu, set(json.loads(Path(descriptor.url.path).read_text())["functions"])), None
        except (OSError, ValueError, KeyError):
            return None, NSError("MTLBinaryArchiveDomain", 1, "the file is not a binary archive")

    def newComputePipelineStateWithDescriptor_options_reflection_error_(
        self, descriptor: ComputePipelineDescriptor, options: int, reflection: None
    ) -> tuple[Any, Any]:
        function = descriptor.function
        assert function is not None
        if self._gpu.pipeline_error:
            return None, NSError("MTLLibraryErrorDomain", 2, self._gpu.pipeline_error)
        if not any(function.key in archive.keys for archive in descriptor.archives):
            if options & _constant("MTLPipelineOptionFailOnBinaryArchiveMiss"):
                return None, NSError("MTLLibraryErrorDomain", 2, "not found in the binary archives")
            self._gpu.compiled.append(function.kernel.name)
        return ComputePipelineState(self._gpu, function.kernel, descriptor.indirect), None


class Buffer(Object):
    """Bytes that the GPU can be given."""

    protocol = "MTLBuffer"
    _numbers = itertools.count(1)

    def __init__(self, gpu: Gpu, address: int, length: int, copied: bool = False) -> None:
        self.address, self._host, self._length = address, address, length
        self._copy = memoryview(bytearray(memory(address, length))) if copied else None
        if gpu.stale_files and not accessible([(address, length)], write=True):
            self._stale = bytearray(length)
            self.address = np.frombuffer(self._stale, np.uint8).ctypes.data
        number = next(self._numbers)
        gpu.live[number] = length
        weakref.finalize(self, gpu.live.pop, number)

    def length(self) -> int:
        return self._length

    def contents(self) -> Varlist | None:
        return Varlist(self._copy or memory(self._host, self._length)) if self._length else None

    def gpuAddress(self) -> int:
        return self.address ^ 1 << 46  # the GPU's address space is another than the host's


class Library(Object):
    """A compiled source."""

    protocol = "MTLLibrary"

    def __init__(self, source: str) -> None:
        self._kernels = compile_library(source).functions
        self._digest = hashlib.sha256(source.encode()).hexdigest()

    def newFunctionWithName_(self, name: str) -> Function | None:
        return Function(self._kernels[name], self._digest) if name in self._kernels else None


class Function(Object):
    """One kernel of a library."""

    protocol = "MTLFunction"

    def __init__(self, kernel: Kernel, digest: str) -> None:
        self.kernel = kernel
        self.key = f"{kernel.name} {digest}"


class BinaryArchive(Object):
    """Compiled functions, in a file or to become one."""

    protocol = "MTLBinaryArchive"

    def __init__(self, gpu: Gpu, keys: set[str]) -> None:
        self._gpu = gpu
        self.keys = keys

    def addComputePipelineFunctionsWithDescriptor_error_(
        self, descriptor: ComputePipelineDescriptor
    ) -> tuple[bool, Any]:
        assert descriptor.function is not None
        if self._gpu.pipeline_error:
            return False, NSError("MTLBinaryArchiveDomain", 3, self._gpu.pipeline_error)
        self._gpu.compiled.append(descriptor.function.kernel.name)
        self.keys.add(descriptor.function.key)
        return True, None

    def serializeToURL_error_(self, url: Any) -> tuple[bool, Any]:
        try:
            Path(url.path).write_text(json.dumps({"functions": sorted(self.keys)}))
        except OSError as error:
            return False, NSError("MTLBinaryArchiveDomain", 4, str(error))
        return True, None


class ComputePipelineState(Object):
    """A kernel, ready to run."""

    protocol = "MTLComputePipelineState"

    def __init__(self, gpu: Gpu, kernel: Kernel, indirect: bool) -> None:
        self._gpu = gpu
        self.kernel = kernel
        self.indirect = indirect

    def maxTotalThreadsPerThreadgroup(self) -> int:
        too_large = self._gpu.simdgroups == "too large" and "simdgroup" in self.kernel.name
        return 64 if too_large else self._gpu.max_threads

    def threadExecutionWidth(self) -> int:
        return self._gpu.simd_width


class IndirectCommandBuffer(Object):
    """Commands that are written once."""

    protocol = "MTLIndirectCommandBuffer"

    def __init__(self, gpu: Gpu, arguments: int, count: int) -> None:
        self._gpu = gpu
        self._commands = [IndirectComputeCommand(gpu, arguments) for _ in range(count)]

    def indirectComputeCommandAtIndex_(self, index: int) -> IndirectComputeCommand:
        rule(index < len(self._commands), f"command {index} of {len(self._commands)}")
        return self._commands[index]


class IndirectComputeCommand(Object):
    """One dispatch."""

    protocol = "MTLIndirectComputeCommand"

    def __init__(self, gpu: Gpu, arguments: int) -> None:
        self._gpu, self._most = gpu, arguments
        self.pipeline: ComputePipelineState | None = None
        self.arguments: dict[int, tuple[weakref.ref[Buffer], int]] = {}
        self.dispatch: Dispatch | None = None
        self.barrier = False

    def setComputePipelineState_(self, pipeline: ComputePipelineState) -> None:
        rule(pipeline.indirect, "a pipeline that was not made for indirect command buffers")
        self.pipeline = pipeline

    def setKernelBuffer_offset_atIndex_(self, buffer: Buffer, offset: int, index: int) -> None:
        rule(index < self._most, f"buffer argument {index}: the descriptor has {self._most}")
        self.arguments[index] = _argument(weakref.ref(buffer), offset, index)

    def setBarrier(self) -> None:
        self.barrier = self._gpu.indirect != "without barriers"

    @as_the_runtime_says("v", "{MTLSize=QQQ}", "{MTLSize=QQQ}")
    def concurrentDispatchThreadgroups_threadsPerThreadgroup_(self, groups: Struct, threads: Struct) -> None:
        self.dispatch = _dispatch(self.pipeline, self.arguments, groups, threads)


class ResidencySet(Object):
    """Buffers that stay where the GPU reaches them. As with Metal's, they live for as long as they are in it."""

    protocol = "MTLResidencySet"

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self._now: dict[int, Buffer] = {}
        self._next: dict[int, Buffer] = {}

    def addAllocation_(self, buffer: Buffer) -> None:
        self._next[id(buffer)] = buffer

    def removeAllocation_(self, buffer: Buffer) -> None:
        rule(id(buffer) in self._next, "a buffer was removed from a residency set that it is not in")
        del self._next[id(buffer)]

    def commit(self) -> None:
        self._now = dict(self._next)

    def requestResidency(self) -> None:
        self._gpu.wired.append(self.nbytes)

    def endResidency(self) -> None:
        self._gpu.wired.clear()

    @property
    def nbytes(self) -> int:
        return sum(buffer._length for buffer in self._now.values())


class Event(Object):
    """A number that only grows, which work waits for."""

    protocol = "MTLEvent"

    def __init__(self) -> None:
        self.value = 0
        self.promised = 0
        """What it will have come to when all that was encoded has been done."""


class SharedEvent(Event):
    """One that the host can wait for, too."""

    protocol = "MTLSharedEvent"

    def __init__(self, gpu: Gpu) -> None:
        super().__init__()
        self._gpu = gpu

    def setSignaledValue_(self, value: int) -> None:
        self.value = value

    def waitUntilSignaledValue_timeoutMS_(self, value: int, milliseconds: int) -> bool:
        return self._gpu.wait(milliseconds / 1000) and self.value >= value


class CommandQueue(Object):
    """Where command buffers come from, and go."""

    protocol = "MTLCommandQueue"

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self._sets: list[ResidencySet] = []

    def addResidencySet_(self, buffers: ResidencySet) -> None:
        self._sets.append(buffers)
        rule(len(self._sets) <= 32, "a queue takes 32 residency sets")
        self._gpu.sets = self._sets

    def commandBuffer(self) -> CommandBuffer:
        return CommandBuffer(self._gpu, retains=True)

    def commandBufferWithUnretainedReferences(self) -> CommandBuffer:
        return CommandBuffer(self._gpu, retains=False)


class Pass(Protocol):
    """A part of a command buffer that begins and ends as a whole."""

    @property
    def ended(self) -> bool: ...

    def _ranges(self) -> list[tuple[int, int]]:
        """What is used, as (address, bytes)."""

    def _run(self) -> None: ...


class CommandBuffer(Object):
    """Work, given to the GPU once. It holds on to nothing that its kernels use: where it ``retains``, it might."""

    protocol = "MTLCommandBuffer"

    def __init__(self, gpu: Gpu, retains: bool) -> None:
        self._gpu = gpu
        self._retains = retains
        self._status = _constant("MTLCommandBufferStatusNotEnqueued")
        self._error: NSError | None = None
        self._times = 0.0, 0.0
        self._encoder: ComputeCommandEncoder | None = None
        # All buffers are untracked: a GPU may run passes in any order where no wait for an event is between them.
        self._passes: list[list[Pass]] = [[]]
        self._waits: list[tuple[Event, int]] = []
        self._signals: list[tuple[Event, int]] = []
        self._given: list[None] = []  # one None, once it was given to the GPU
        self._watch: Watch | None = None
        weakref.finalize(self, _dropped, self._passes, self._given)

    @property
    def ready(self) -> bool:
        """Whether all that it waits for has come."""
        return all(event.value >= value for event, value in self._waits)

    def _run(self, gpu: Gpu) -> None:
        """The GPU's part."""
        begin = time.monotonic()
        try:
            if gpu.command_error:
                self._fail(gpu.command_error, "told to fail")
                return
            rule(accessible(self._ranges(), write=False), "pages were unmapped before the GPU came to them")
            if self._watch is not None:
                self._watch.check()
            for group in self._passes:
                for part in reversed(group):
                    part._run()
        except RuleError as error:
            self._fail(_constant("MTLCommandBufferErrorInternal"), str(error))
            raise
        for event, value in self._signals:
            event.value = max(event.value, value)
        self._times = begin, time.monotonic()
        self._status = _constant("MTLCommandBufferStatusCompleted")

    def _fail(self, code: int, text: str) -> None:
        self._status = _constant("MTLCommandBufferStatusError")
        self._error = NSError("MTLCommandBufferErrorDomain", code, text)

    def computeCommandEncoderWithDispatchType_(self, kind: int) -> ComputeCommandEncoder:
        self._open("computeCommandEncoderWithDispatchType:")
        self._encoder = ComputeCommandEncoder(serial=kind == _constant("MTLDispatchTypeSerial"))
        self._passes[-1].append(self._encoder)
        return self._encoder

    def encodeWaitForEvent_value_(self, event: Event, value: int) -> None:
        self._open("encodeWaitForEvent:value:")
        if self._passes == [[]]:
            self._waits.append((event, value))
        else:
            last = self._signals[-1:] == [(event, value)]
            rule(last, "the stand-in waits for others before everything else, and then for its own last signal")
            self._passes.append([])

    def encodeSignalEvent_value_(self, event: Event, value: int) -> None:
        self._open("encodeSignalEvent:value:")
        rule(value > event.promised, f"an event that comes to {event.promised} cannot signal {value}")
        event.promised = value
        self._signals.append((event, value))

    def commit(self) -> None:
        self._open("commit")
        self._given.append(None)
        self._status = _constant("MTLCommandBufferStatusCommitted")
        with self._gpu.lock:  # so that no kernel of another thread's submission writes while the ranges are summed
            if self._gpu.idle:
                self._watch = Watch(self._ranges())
            self._gpu.give(self)

    def waitUntilCompleted(self) -> None:
        rule(self._status != _constant("MTLCommandBufferStatusNotEnqueued"), "waitUntilCompleted before commit")
        self._gpu.progress()

    def status(self) -> int:
        return self._status

    def error(self) -> NSError | None:
        return self._error

    def GPUStartTime(self) -> float:
        return self._times[0]

    def GPUEndTime(self) -> float:
        return self._times[1]

    def _add(self, what: str, part: Pass) -> None:
        """What encodes itself, by ``what``."""
        self._open(what)
        self._passes[-1].append(part)

    def _ranges(self) -> list[tuple[int, int]]:
        return sorted({place for group in self._passes for part in group for place in part._ranges()})

    def _open(self, what: str) -> None:
        rule(self._status == _constant("MTLCommandBufferStatusNotEnqueued"), f"{what} after commit")
        rule(self._encoder is None or self._encoder.ended, f"{what} while an encoder is open")


class ComputeCommandEncoder(Object):
    """The calls that a command buffer is filled with."""

    protocol = "MTLComputeCommandEncoder"

    def __init__(self, serial: bool) -> None:
        self.ended = False
        self._serial = serial
        self._pipeline: ComputePipelineState | None = None
        self._arguments: dict[int, tuple[weakref.ref[Buffer], int]] = {}
        self._set_pipelines: set[int] = set()
        self._used: set[int] = set()
        # Between two barriers a GPU may run dispatches in any order, or all at once.
        self._groups: list[list[Dispatch]] = [[]]
        weakref.finalize(self, _left_open, self.__dict__)

    def _ranges(self) -> list[tuple[int, int]]:
        return [place for group in self._groups for dispatch in group for place in dispatch.places()]

    def _run(self) -> None:
        for group in self._groups:
            for dispatch in reversed(group):
                dispatch.run()

    def setComputePipelineState_(self, pipeline: ComputePipelineState) -> None:
        self._open("setComputePipelineState:")
        self._pipeline = pipeline
        self._set_pipelines.add(id(pipeline))

    def setBuffer_offset_atIndex_(self, buffer: Buffer, offset: int, index: int) -> None:
        self._open("setBuffer:offset:atIndex:")
        rule(index < 31, f"buffer argument {index}: there are 31")
        self._set(weakref.ref(buffer), offset, index)

    def setBufferOffset_atIndex_(self, offset: int, index: int) -> None:
        self._open("setBufferOffset:atIndex:")
        rule(index in self._arguments, f"setBufferOffset: before a buffer was set at index {index}")
        self._set(self._arguments[index][0], offset, index)

    def dispatchThreadgroups_threadsPerThreadgroup_(self, groups: Struct, threads: Struct) -> None:
        self._open("dispatchThreadgroups:threadsPerThreadgroup:")
        if tuple(groups) == tuple(threads) == (0, 0, 0):
            return  # what is known to bring pipelines to the GPU for indirect commands
        self._groups[-1].append(_dispatch(self._pipeline, self._arguments, groups, threads))
        if self._serial:
            self._groups.append([])

    def useResources_count_usage_(self, resources: list[Buffer], count: int, usage: int) -> None:
        self._open("useResources:count:usage:")
        self._used |= {id(resource) for resource in resources}

    def executeCommandsInBuffer_withRange_(self, commands: IndirectCommandBuffer, where: Struct) -> None:
        self._open("executeCommandsInBuffer:withRange:")
        rule(where[0] + where[1] <= len(commands._commands), "a range of commands that are not there")
        keeps = any(family >= "Apple9" for family in commands._gpu.families if family.startswith("Apple"))
        for command in commands._commands[where[0] : where[0] + where[1]]:
            rule(command.dispatch is not None, "an indirect command that was not written")
            rule(keeps or id(command.pipeline) in self._set_pipelines, "a pipeline that the encoder was never given")
            used = (reference() for reference, _ in command.arguments.values())
            rule(all(id(buffer) in self._used for buffer in used), "a buffer that no useResources: names")
            if command.barrier:
                self._groups.append([])
            self._groups[-1].append(command.dispatch)

    def memoryBarrierWithScope_(self, scope: int) -> None:
        self._open("memoryBarrierWithScope:")
        rule(scope == _constant("MTLBarrierScopeBuffers"), f"barrier scope {scope} orders no buffers")
        self._groups.append([])

    def endEncoding(self) -> None:
        self._open("endEncoding")
        self.ended = True
        self._pipeline = None

    def _set(self, buffer: weakref.ref[Buffer], offset: int, index: int) -> None:
        self._arguments[index] = _argument(buffer, offset, index)

    def _open(self, what: str) -> None:
        rule(not self.ended, f"{what} after endEncoding")


def _argument(buffer: weakref.ref[Buffer], offset: int, index: int) -> tuple[weakref.ref[Buffer], int]:
    held = buffer()
    rule(held is not None, "a buffer was released before it was used")
    assert held is not None
    alignment = CONSTANT_ALIGNMENT if index == 0 else DEVICE_ALIGNMENT
    rule(offset % alignment == 0, f"offset {offset} of buffer argument {index} is no multiple of {alignment}")
    rule(offset < held._length, f"offset {offset} is past a buffer of {held._length} bytes")
    return buffer, offset


def _dispatch(
    pipeline: ComputePipelineState | None,
    given: dict[int, tuple[weakref.ref[Buffer], int]],
    groups: Struct,
    threads: Struct,
) -> Dispatch:
    rule(pipeline is not None, "a dispatch before a pipeline was set")
    assert pipeline is not None
    count = threads[0] * threads[1] * threads[2]
    most = pipeline._gpu.max_threads
    rule(1 <= count <= most, f"{count} threads in a threadgroup, where the pipeline has 1 to {most}")
    rule(min(groups) > 0, "a dispatch of no threadgroups")
    kernel = pipeline.kernel
    for index in kernel.buffers:
        rule(index in given, f"{kernel.name}: no buffer was set at index {index}")
    arguments = {index: given[index] for index in kernel.buffers}
    return Dispatch(weakref.ref(pipeline), arguments, tuple(groups), tuple(threads))


class Dispatch:
    """One kernel's run, as it was encoded."""

    def __init__(
        self,
        pipeline: weakref.ref[ComputePipelineState],
        arguments: dict[int, tuple[weakref.ref[Buffer], int]],
        groups: tuple[int, ...],
        threads: tuple[int, ...],
    ) -> None:
        self._pipeline, self._arguments = pipeline, arguments
        self._groups, self._threads = groups, threads

    def places(self) -> list[tuple[int, int]]:
        return list(self._resolved().values())

    def run(self) -> None:
        pipeline = self._pipeline()
        rule(pipeline is not None, "a pipeline was released before the GPU came to it")
        assert pipeline is not None
        try:
            pipeline.kernel.run(self._resolved(), self._groups, self._threads)
        except ShimError as error:
            raise RuleError(str(error)) from error
        if pipeline._gpu.simdgroups == "wrong" and "simdgroup" in pipeline.kernel.name:
            address, _ = self._resolved()[3]
            memory(address, 4).cast("f")[0] += 1

    def _resolved(self) -> dict[int, tuple[int, int]]:
        found = {}
        for index, (reference, offset) in self._arguments.items():
            buffer = reference()
            rule(buffer is not None, "a buffer was released before the GPU came to it")
            assert buffer is not None
            found[index] = buffer.address + offset, buffer._length - offset
        return found


def _left_open(state: dict[str, Any]) -> None:
    if not state.get("ended"):
        broken.append("an encoder was dropped without endEncoding")


def _dropped(passes: list[list[Pass]], given: list[None]) -> None:
    """A command buffer is gone. What it would have used must not be gone before it."""
    try:
        if not given:
            for part in itertools.chain(*passes):
                part._ranges()
    except RuleError as error:
        broken.append(f"a command buffer that was never committed: {error}")


broken: list[str] = []
"""Rules that were broken where nobody could be told."""


def _address(pages: Any) -> int:
    return np.frombuffer(pages, np.uint8).ctypes.data


CLASSES: dict[str, type[Object]] = {
    "MTLCompileOptions": CompileOptions,
    "MTLComputePipelineDescriptor": ComputePipelineDescriptor,
    "MTLBinaryArchiveDescriptor": BinaryArchiveDescriptor,
    "MTLIndirectCommandBufferDescriptor": IndirectCommandBufferDescriptor,
    "MTLResidencySetDescriptor": ResidencySetDescriptor,
}
"""What Python sees by name."""


def _all() -> list[type[Object]]:
    return [kind for kind in globals().values() if isinstance(kind, type) and issubclass(kind, Object)]


def selectors() -> set[str]:
    """Every selector that signatures.txt must describe."""
    return {selector for kind in _all() for selector in kind.described}


def protocols() -> dict[str, set[str]]:
    """The selectors of each protocol that is stood in for."""
    return {kind.protocol: set(kind.described) for kind in _all() if kind.protocol}


class Framework:
    """What ``import Metal`` gives."""

    def __init__(self, gpus: list[Gpu]) -> None:
        self._gpus = gpus
        self._size = struct("MTLSize")

    def MTLCopyAllDevices(self) -> list[Device]:
        calls["MTLCopyAllDevices"] += 1
        return [Device(gpu) for gpu in self._gpus]

    def MTLSizeMake(self, *sides: int) -> Struct:
        calls["MTLSizeMake"] += 1
        if len(sides) != 3:
            raise TypeError(f"MTLSizeMake: need 3 arguments, got {len(sides)}")
        for side in sides:
            if type(side) is not int or not 0 <= side < 2**64:
                raise ValueError(f"MTLSizeMake: {side!r}, where Q is expected")
        return self._size(sides)

    def __getattr__(self, name: str) -> Any:
        if name in CLASSES:
            return CLASSES[name]
        if name in table().constants:
            return table().constants[name]
        raise AttributeError(f"module 'Metal' has no attribute {name!r}")


__all__ = ["CLASSES", "FUNCTIONS", "STRUCTS", "Framework", "Pool", "broken", "protocols", "selectors"]
