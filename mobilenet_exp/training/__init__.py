"""Learn: read `loop` first, then `engine`.

`job` opens a run, `session` builds what its configuration asks for, `loop` runs the
epochs, `engine` makes one update, `saving` keeps checkpoints, `record` writes and prints.
"""
