"""Sets of images in a few large files, the shards: written, indexed, read, fetched."""
