"""Weights of any origin: read, translated, fetched, exported; and a run's checkpoints."""
