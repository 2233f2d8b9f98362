"""Clients of rs_timm: one script a question. Results go to benchmarks/results/*.csv."""
