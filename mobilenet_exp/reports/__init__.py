"""Reads what runs and rows say, and shows it: generated pages and pictures."""
