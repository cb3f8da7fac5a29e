"""Linear memory: pages, regions, apertures, and the hook that hands them to Wasmtime; and the pages of files."""

from wasmetal.memory.aperture import Aperture
from wasmetal.memory.creator import MemoryCreator
from wasmetal.memory.engine import memory_refusals, new_engine
from wasmetal.memory.filepages import FilePages
from wasmetal.memory.pages import page_size
from wasmetal.memory.region import Region

__all__ = ["Aperture", "FilePages", "MemoryCreator", "Region", "memory_refusals", "new_engine", "page_size"]
