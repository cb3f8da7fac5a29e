"""The host functions, a class for each interface: its public methods are the functions."""
