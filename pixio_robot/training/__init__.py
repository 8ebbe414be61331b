"""What every training loop shares: optimisers, the guard against non-finite steps, states, processes, metric logs."""
