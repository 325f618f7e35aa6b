"""From a command line through Hydra to a job, and to its exit code."""
