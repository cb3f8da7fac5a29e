"""wasi-nn for guests: what is granted, how records are read, and how errors become errnos."""
