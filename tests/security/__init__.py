"""Guests, modules and files that mean harm, one file for each topic."""
