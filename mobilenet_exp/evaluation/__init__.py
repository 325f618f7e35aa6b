"""Score a network: every image once, on any number of processes."""
