"""``python -m tests.metal.standin`` writes signatures.txt anew; ``--check`` fails where that changes it."""

import sys

from tests.metal.standin.wheel import SIGNATURES, generate

if "--check" not in sys.argv:
    SIGNATURES.write_text(generate())
elif SIGNATURES.read_text() != generate():
    sys.exit("tests/metal/standin/signatures.txt is not what the wheel says: run `python -m tests.metal.standin`")
