"""Utilities that all other packages use: errors, ranges, registries, files, the terminal."""
