"""What is written while a run goes on: metrics, W&B, a sweep's records, the terminal."""
