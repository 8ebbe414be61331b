"""From a checkpoint to a bundle: one program, its card, and the gate that compares it with the eager policy."""
