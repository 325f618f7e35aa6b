"""Learn: read `train` first, a run from top to bottom, then `step`, one update of it.

`state` is what a run is made of, `checkpointing` saves and resumes it, `reporting` writes and
prints; a registry each has the losses, the optimizers and the schedules.
"""
