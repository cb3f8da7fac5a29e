"""Linear memory: pages, regions, apertures, and how Wasmtime gets them; and the pages of mapped files."""

from wasmetal.memory.aperture import Aperture
from wasmetal.memory.creator import Budget, MemoryCreator
from wasmetal.memory.filepages import FilePages
from wasmetal.memory.pages import page_size
from wasmetal.memory.region import Region
from wasmetal.memory.wasmtime_engine import new_engine

__all__ = ["Aperture", "Budget", "FilePages", "MemoryCreator", "Region", "new_engine", "page_size"]
