"""Sets of images: what there is, where it lies, and one image of it opened."""
