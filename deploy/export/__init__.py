"""From a checkpoint to a bundle: one program with its manifest, verified against the eager policy."""
