"""Reports on runs and published rows: lists, an HTML page, a workspace in W&B."""
