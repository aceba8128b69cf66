"""The scripts behind the snapshots, one function each, in our own words: what ran, in which order, and what stayed alive.

A script builds everything itself on the default device (the GPU's stand-in), calls `mark("start")` where its author
started to record and `mark("end")` where the record was written. Before the start only what is still alive counts, so one
warm-up step stands for several. Variables that an author left alive (`logits` and `loss` of the step before) are left
alive here; functions end where the author's ended, because that is when their variables go.

Optimizers of PyTorch make their step counters on the CPU; `HOST` keeps them there when the default device is another.
"""
