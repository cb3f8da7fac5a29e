"""A stand-in for PyObjC's ``Metal`` (with what it needs of ``objc``, ``Foundation`` and ``MetalPerformanceShaders``).

It has just what the Metal device uses. Each call's selector, number and kinds of arguments are checked against PyObjC's
own metadata (signatures.txt); Metal's rules are enforced (framework.py, shaders.py); kernels run on the CPU shim. It
shows that the device speaks the bridge's language and keeps Metal's rules, as far as they are written down here. It
does not show that Apple's compiler, drivers or GPUs agree.
"""

from tests.metal.standin.bridge import RuleError
from tests.metal.standin.gpu import Gpu
from tests.metal.standin.install import installed

__all__ = ["Gpu", "RuleError", "installed"]
