"""A network in deployment: timed, folded, exported, quantised."""
