"""Sets of images: by name, listed, and one image opened."""
