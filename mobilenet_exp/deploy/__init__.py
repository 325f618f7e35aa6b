"""A network as it is shipped: timed, and later folded, exported, quantised."""
