"""Vulkan 1.2 devices that can import host pages (``VK_EXT_external_memory_host``).

Importing a module of this package loads the system's Vulkan loader, or raises DeviceNotFoundError if there is none.
"""
