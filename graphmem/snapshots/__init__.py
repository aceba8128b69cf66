"""PyTorch's memory snapshots (``torch.cuda.memory._dump_snapshot``): read without running anything in them, replayed, written."""
