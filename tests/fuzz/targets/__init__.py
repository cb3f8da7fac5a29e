"""The targets. ``tests.fuzz.target.Target`` says what each one is."""
