"""The words of docs/accuracy.md around its tables."""

HEAD = """# Accuracy

`python -m tests.accuracy` runs the comparisons and writes this page (here: torch {torch}, transformers 5.23, CPU build, no GPU); the sweep over
every architecture of transformers is on [a page of its own](accuracy-sweep.md). Bytes are bytes. No constant is fitted to a row; each
rule that adds an allocation says in its docstring why it exists and where PyTorch's source says so.

What the columns mean. *Peak* is everything allocated at the highest point, weights and inputs included. *Events* are allocations and
releases; *equal in order* is the longest common subsequence of (allocation or release, bytes) over the real events. Autocast drops its cached weights
in the order of a hash table keyed by addresses, which no trace can know, so the GPU table also counts with each run of consecutive releases taken as a set.

The GPU rows are snapshots that others recorded and published, replayed from their scripts rewritten in our words, on the PyTorch release that made
them as far as its kernels and libraries go (the `Device.torch` field). Misses stay in the tables:

- *ResNet-50 timelines*: torch.profiler's timeline of an A10G lists block bytes and cuDNN's convolution workspaces (up to 134 MB), which cuDNN's heuristics
  choose and no source tells; graphmem counts none, so every convolution misses an allocation and a release.
- *one script is inferred*: the author's repository is not public, and its script was read off the events it is compared with. It shows that such a
  script exists, not that the trace predicts it.
"""
