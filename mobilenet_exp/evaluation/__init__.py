"""Score a network: every image once, whoever shares the work."""
