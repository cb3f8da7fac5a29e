"""Linear memory: pages, regions, apertures, and the hook that hands them to Wasmtime."""
