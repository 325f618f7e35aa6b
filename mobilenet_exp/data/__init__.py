"""Image files to batches: data sets, decoding, augmentation, order."""
