"""The paper's tables and figures from benchmarks/results/paper_*.csv: samples over seeds, tables, pictures."""
