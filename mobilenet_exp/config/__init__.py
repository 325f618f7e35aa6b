"""What a run is: its keys, their checks, its identity."""
