"""Kernels and memory of a training step on CPUs, where torch leaves time and memory on the table."""
