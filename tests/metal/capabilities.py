"""Prints what a GPU and PyObjC report, for CI logs: ``python capabilities.py``.

A question that ends in an error is answered with the error. Needs a Mac, or the stand-in's modules on the path.
"""

from __future__ import annotations

from collections.abc import Callable

import Metal as mtl
import objc

from wasmetal import ops
from wasmetal.device import open_device
from wasmetal.kernels.catalog import CATALOG
from wasmetal.ops import DType, Recorder, Tensor

FAMILIES = [*(f"Apple{i}" for i in range(5, 12)), "Mac2", "Common3", "Metal3", "Metal4"]


def ask(what: str, answer: Callable[[], object]) -> None:
    try:
        with objc.autorelease_pool():
            print(f"{what}: {answer()}", flush=True)
    except Exception as error:
        print(f"{what}: {type(error).__name__}: {error}", flush=True)


def main() -> None:
    with objc.autorelease_pool():
        handle = mtl.MTLCopyAllDevices()[0]
    device = open_device("metal")
    backend = device.backend

    def families() -> str:
        known = [name for name in FAMILIES if hasattr(mtl, f"MTLGPUFamily{name}")]
        return ", ".join(name for name in known if handle.supportsFamily_(getattr(mtl, f"MTLGPUFamily{name}")))

    def threads() -> str:
        pipeline = backend.pipelines.get(CATALOG["add"]).handle
        return f"{pipeline.threadExecutionWidth()}, {pipeline.maxTotalThreadsPerThreadgroup()}"

    def gpu_seconds() -> float:
        values = Tensor(device.allocate(4 << 20), 0, DType.F32, (1 << 20,))
        commands = device.record()
        ops.scale(Recorder(device.info, commands), values, 2.0, values)
        commands.finish()
        submission = device.submit([commands])
        submission.wait(60)
        return submission.seconds

    def indirect_dispatch() -> object:
        descriptor = mtl.MTLIndirectCommandBufferDescriptor.new()
        descriptor.setCommandTypes_(mtl.MTLIndirectCommandTypeConcurrentDispatch)
        descriptor.setMaxKernelBufferBindCount_(4)
        make = handle.newIndirectCommandBufferWithDescriptor_maxCommandCount_options_
        command = make(descriptor, 1, 0).indirectComputeCommandAtIndex_(0)
        return command.concurrentDispatchThreadgroups_threadsPerThreadgroup_.__metadata__()

    ask("name", handle.name)
    ask("families", families)
    ask("longest buffer", handle.maxBufferLength)
    ask("working set", handle.recommendedMaxWorkingSetSize)
    ask("threads of a simdgroup, and most of a group", threads)
    ask("seconds of one kernel by the GPU's own clock", gpu_seconds)
    ask("pipeline archive (MTLBinaryArchive)", lambda: backend.pipelines.archived)
    ask("residency set", lambda: backend.queue.residency.kept)
    ask("features", lambda: "; ".join(device.info.features))
    ask("dispatch of an indirect command, as PyObjC calls it", indirect_dispatch)
    device.close()


if __name__ == "__main__":
    main()
