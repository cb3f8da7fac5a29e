"""The stand-in under its real name, for a process with this folder on its path."""

from tests.metal.standin.install import take_place

take_place()
