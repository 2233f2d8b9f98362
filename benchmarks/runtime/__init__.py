"""What the benchmarks of the runtime share: networks, pictures, turns, tables, figures."""
