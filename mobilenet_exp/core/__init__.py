"""The ground that everything stands on: errors, ranges, names to builders, the terminal."""
