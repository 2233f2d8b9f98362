"""Parts of `benchmarks.training_cost`."""
