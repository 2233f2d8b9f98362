"""Train RS-Nets: the task, the loop, checkpoints and recipes."""
