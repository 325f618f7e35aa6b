"""Published rows, and a run set beside them."""
