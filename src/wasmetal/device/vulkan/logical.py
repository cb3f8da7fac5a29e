"""A logical device with one queue. A timeline semaphore counts submissions, so no fences are needed."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from wasmetal.device.release import on_release
from wasmetal.device.vulkan import features
from wasmetal.device.vulkan.api import NULL, call, check, ffi, lib, make, struct
from wasmetal.device.vulkan.physical import EXTENSIONS, PhysicalDevice
from wasmetal.device.waiting import spin


class LogicalDevice:
    """An open ``VkDevice``. Objects created from it refer to it, so it is destroyed after all of them."""

    def __init__(self, physical: PhysicalDevice) -> None:
        self.physical = physical
        extensions = [*EXTENSIONS, *features.extensions_of(physical.features)]
        family = physical.queue_family
        queue = struct("VkDeviceQueueCreateInfo", queueFamilyIndex=family, queueCount=1, pQueuePriorities=[1.0])
        queues = {"queueCreateInfoCount": 1, "pQueueCreateInfos": queue}
        enabled = {"enabledExtensionCount": len(extensions), "ppEnabledExtensionNames": extensions}
        info = struct("VkDeviceCreateInfo", pNext=physical.enabling, **queues, **enabled)
        self.handle = make("vkCreateDevice", "VkDevice", physical.handle, info, NULL)
        self._semaphore = ffi.new("VkSemaphore *")
        on_release(self, _destroy, physical.instance, self.handle, self._semaphore)
        timeline = struct("VkSemaphoreTypeCreateInfo", semaphoreType=lib.VK_SEMAPHORE_TYPE_TIMELINE)
        call("vkCreateSemaphore", self.handle, struct("VkSemaphoreCreateInfo", pNext=timeline), NULL, self._semaphore)
        self._queue = make("vkGetDeviceQueue", "VkQueue", self.handle, family, 0)
        self._submitted = 0
        self._completed = 0
        self._lock = threading.Lock()
        value = self._signal_value = ffi.new("uint64_t *")
        chain = struct("VkTimelineSemaphoreSubmitInfo", signalSemaphoreValueCount=1, pSignalSemaphoreValues=value)
        signal = {"signalSemaphoreCount": 1, "pSignalSemaphores": self._semaphore}
        self._submit_info = struct("VkSubmitInfo", pNext=chain, **signal)
        self._host_pointer_properties = self._function("vkGetMemoryHostPointerPropertiesEXT")
        self.push_descriptors = self._function("vkCmdPushDescriptorSetKHR")
        """``vkCmdPushDescriptorSetKHR``: binds buffers for the next dispatch in a command buffer."""

    def create(self, kind: str, info: Any) -> Owned:
        """Call ``vkCreate<kind>``; the new object is destroyed with ``vkDestroy<kind>``."""
        handle = make(f"vkCreate{kind}", f"Vk{kind}", self.handle, info, NULL)
        return Owned(self, handle, f"vkDestroy{kind}")

    def submit(self, command_buffers: Sequence[Any]) -> int:
        """Submit ``VkCommandBuffer``s; return the submission's number, for :meth:`wait`. Callable from any thread."""
        with self._lock:
            number = self._submitted + 1
            self._signal_value[0] = number
            self._submit_info.commandBufferCount = len(command_buffers)
            self._submit_info.pCommandBuffers = buffers = ffi.new("VkCommandBuffer[]", command_buffers)
            call("vkQueueSubmit", self._queue, 1, self._submit_info, NULL)
            del buffers  # kept until here: the call reads it through the struct, which does not refer to it
            self._submitted = number
            return number

    def wait_for(self, number: int, seconds: float, patient: bool = False) -> bool:
        """Block for at most ``seconds``; return whether a submission, and so every earlier one, has ended.

        ``patient``: as for :meth:`Device.submit`. Raises DeviceLostError.
        """
        if number <= self._completed:
            return True
        value = ffi.new("uint64_t *", number)
        fields = lib.VK_STRUCTURE_TYPE_SEMAPHORE_WAIT_INFO, NULL, 0, 1, self._semaphore, value
        info = ffi.new("VkSemaphoreWaitInfo *", fields)  # without struct(): every token waits here

        def ended(seconds: float = 0) -> bool:
            return call("vkWaitSemaphores", self.handle, info, int(seconds * 1e9)) == int(lib.VK_SUCCESS)

        if not (seconds and not patient and self.physical.info.gpu and spin(ended, seconds)) and not ended(seconds):
            return False
        self._completed = max(self._completed, number)
        return True

    def importable_types(self, address: int) -> int:
        """A bit mask of the memory types that can import host pages at ``address``. Raises WrapRefusedError."""
        properties = struct("VkMemoryHostPointerPropertiesEXT")
        handle_type = lib.VK_EXTERNAL_MEMORY_HANDLE_TYPE_HOST_ALLOCATION_BIT_EXT
        result = self._host_pointer_properties(self.handle, handle_type, ffi.cast("void *", address), properties)
        check(result, "vkGetMemoryHostPointerPropertiesEXT")
        return int(properties.memoryTypeBits)

    def _function(self, name: str) -> Any:
        """A function of a device extension, by name."""
        return ffi.cast(f"PFN_{name}", lib.vkGetDeviceProcAddr(self.handle, name.encode()))


class Owned:
    """A Vulkan object, destroyed once nothing refers to it; the device and ``keeps`` stay alive until then."""

    def __init__(self, device: LogicalDevice, handle: Any, destroy: str, keeps: object = None) -> None:
        self.handle = handle
        on_release(self, _destroy_owned, device, handle, destroy, keeps)


def _destroy_owned(device: LogicalDevice, handle: Any, destroy: str, _keeps: object) -> None:
    getattr(lib, destroy)(device.handle, handle, NULL)


def _destroy(_instance: object, device: Any, semaphore: Any) -> None:
    # The instance is an argument so that it is destroyed after the device.
    lib.vkDestroySemaphore(device, semaphore[0], NULL)
    lib.vkDestroyDevice(device, NULL)
