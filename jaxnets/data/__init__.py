"""Sources -> index plan -> uint8 batches; preprocessing; augmentation on the device."""
