"""GEMM libraries: vendors' implementations of large GEMMs, each a plug-in of one backend.

``base`` has what all share: it selects the GEMMs and tries the library before its first use. Each other module is one
library; it may import from the backend that it belongs to. There, only the module that opens devices imports it.
"""
