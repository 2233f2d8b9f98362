"""Which resolution, and when: latency tables, budgets, load and cascades."""
