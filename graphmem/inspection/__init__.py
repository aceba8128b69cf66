"""A Checkpoint → the Report of ``graphmem inspect``: every table from the stored tensors and the config, nothing else."""
