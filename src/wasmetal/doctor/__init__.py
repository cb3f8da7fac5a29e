"""The proof that guest, host and device work on the same bytes, and that none is copied."""

from wasmetal.doctor.proof import prove
from wasmetal.doctor.report import Link, Report

__all__ = ["Link", "Report", "prove"]
