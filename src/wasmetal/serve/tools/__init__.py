"""Tools that a model may call: how templates and models write the calls, and how answers are read."""
