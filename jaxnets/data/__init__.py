"""Data sets, batches of uint8 images, preprocessing and augmentation."""
