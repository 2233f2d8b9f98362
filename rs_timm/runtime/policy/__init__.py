"""The choice of a resolution while serving: latency tables, budgets, load and cascades."""
