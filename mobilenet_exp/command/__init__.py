"""From words to a job, and to its exit code; with `cli`, all that knows Hydra."""
