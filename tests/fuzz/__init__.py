"""Fuzzing: hostile inputs of every kind, made at random, given to wasmetal in a process that is watched.

A target is a module of ``tests.fuzz.targets``; ``python -m tests.fuzz`` runs one or all. ``test_fuzz.py`` replays the
kept cases.
"""
