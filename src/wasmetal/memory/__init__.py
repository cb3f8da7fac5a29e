"""Linear memory: pages, regions, apertures, and the hook that hands them to Wasmtime."""

from wasmetal.memory.aperture import Aperture
from wasmetal.memory.creator import MemoryCreator
from wasmetal.memory.engine import memory_refusals, new_engine
from wasmetal.memory.pages import page_size
from wasmetal.memory.region import Region

__all__ = ["Aperture", "MemoryCreator", "Region", "memory_refusals", "new_engine", "page_size"]
