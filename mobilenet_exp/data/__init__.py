"""Images to batches on the device: order, augmentation, threads and processes that read."""
