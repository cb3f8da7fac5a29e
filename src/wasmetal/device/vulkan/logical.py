"""A logical device with its one queue. A timeline semaphore numbers the submissions, so waiting needs no fences."""

from __future__ import annotations

import threading
from typing import Any

from wasmetal.device.vulkan import features
from wasmetal.device.vulkan.api import (
    NULL,
    array,
    call,
    check,
    create,
    device_function,
    ffi,
    lib,
    on_release,
    strings,
    struct,
)
from wasmetal.device.vulkan.physical import HOST_MEMORY_EXTENSION, PhysicalDevice
from wasmetal.device.waiting import wait_in_slices
from wasmetal.errors import DeviceLostError


class LogicalDevice:
    """The opened device, as all its objects know it. It is destroyed when the last of them is gone."""

    def __init__(self, physical: PhysicalDevice) -> None:
        self.physical = physical
        extensions = [HOST_MEMORY_EXTENSION]
        if physical.has("subgroupSizeControl"):
            extensions.append(features.SUBGROUP_SIZE_EXTENSION)
        queue = struct(
            "VkDeviceQueueCreateInfo",
            queueFamilyIndex=physical.queue_family,
            queueCount=1,
            pQueuePriorities=array("float", [1.0]),
        )
        info = struct(
            "VkDeviceCreateInfo",
            pNext=features.enabling(physical.features, physical.extensions),
            queueCreateInfoCount=1,
            pQueueCreateInfos=queue,
            enabledExtensionCount=len(extensions),
            ppEnabledExtensionNames=strings(extensions),
        )
        self.handle = create("Device", physical.handle, info)
        self._semaphore = ffi.new("VkSemaphore *")
        on_release(self, _destroy, physical.instance, self.handle, self._semaphore)
        timeline = struct("VkSemaphoreTypeCreateInfo", semaphoreType=lib.VK_SEMAPHORE_TYPE_TIMELINE)
        call("vkCreateSemaphore", self.handle, struct("VkSemaphoreCreateInfo", pNext=timeline), NULL, self._semaphore)
        held = ffi.new("VkQueue *")
        lib.vkGetDeviceQueue(self.handle, physical.queue_family, 0, held)
        self._queue = held[0]
        self._submitted = 0
        self._completed = 0
        self._lost = False
        self._lock = threading.Lock()
        self._signal = ffi.new("uint64_t *")
        self._submit_info = struct(
            "VkSubmitInfo",
            pNext=struct(
                "VkTimelineSemaphoreSubmitInfo", signalSemaphoreValueCount=1, pSignalSemaphoreValues=self._signal
            ),
            signalSemaphoreCount=1,
            pSignalSemaphores=self._semaphore,
        )
        self._host_pointer_properties = device_function(self.handle, "vkGetMemoryHostPointerPropertiesEXT")

    def create(self, kind: str, info: Any) -> Owned:
        """A new child object of the device: ``kind`` names it as in ``vkCreate<kind>``."""
        return Owned(self, kind, info)

    def submit(self, command_buffers: Any) -> int:
        """Start a ``VkCommandBuffer`` array; returns the submission's number, to wait for. From any thread."""
        with self._lock:
            self._check_lost()
            self._signal[0] = self._submitted + 1
            self._submit_info.commandBufferCount = len(command_buffers)
            self._submit_info.pCommandBuffers = command_buffers
            self._call("vkQueueSubmit", self._queue, 1, self._submit_info, NULL)
            self._submitted += 1
            return self._submitted

    def wait_for(self, number: int, seconds: float) -> bool:
        """Block for at most so many seconds; return whether a submission, and so all before it, has ended.

        Raises DeviceLostError.
        """
        if number <= self._completed:
            return True
        self._check_lost()
        info = struct(
            "VkSemaphoreWaitInfo",
            semaphoreCount=1,
            pSemaphores=self._semaphore,
            pValues=array("uint64_t", [number]),
        )
        if self._call("vkWaitSemaphores", self.handle, info, int(seconds * 1e9)) != lib.VK_SUCCESS:
            return False
        self._completed = max(self._completed, number)
        return True

    def wait(self, number: int) -> None:
        """Block until a submission has ended. Raises DeviceLostError."""
        wait_in_slices(lambda seconds: self.wait_for(number, seconds))

    def completed(self, number: int) -> bool:
        """Whether a submission has ended, without waiting."""
        if number > self._completed:
            value = ffi.new("uint64_t *")
            self._call("vkGetSemaphoreCounterValue", self.handle, self._semaphore[0], value)
            self._completed = max(self._completed, value[0])
        return number <= self._completed

    def importable_types(self, address: int) -> int:
        """Bits of the memory types that host pages at an address can be imported as. Raises WrapRefusedError."""
        properties = struct("VkMemoryHostPointerPropertiesEXT")
        handle_type = lib.VK_EXTERNAL_MEMORY_HANDLE_TYPE_HOST_ALLOCATION_BIT_EXT
        result = self._host_pointer_properties(self.handle, handle_type, ffi.cast("void *", address), properties)
        check(result, "vkGetMemoryHostPointerPropertiesEXT")
        return int(properties.memoryTypeBits)

    def _call(self, function: str, *args: Any) -> int:
        try:
            return call(function, *args)
        except DeviceLostError:
            self._lost = True
            raise

    def _check_lost(self) -> None:
        if self._lost:
            raise DeviceLostError("the device was lost: open it again")


class Owned:
    """An object of the device's, destroyed when nothing refers to it any more."""

    def __init__(self, device: LogicalDevice, kind: str, info: Any) -> None:
        self.handle = create(kind, device.handle, info)
        on_release(self, _destroy_owned, device, getattr(lib, f"vkDestroy{kind}"), self.handle)


def _destroy_owned(device: LogicalDevice, destroy: Any, handle: Any) -> None:
    destroy(device.handle, handle, NULL)


def _destroy(_instance: object, device: Any, semaphore: Any) -> None:
    # The instance is an argument so that it outlives its device.
    lib.vkDestroySemaphore(device, semaphore[0], NULL)
    lib.vkDestroyDevice(device, NULL)
