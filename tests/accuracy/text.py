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

#: What stands above a section's table, by the section's number.
INTRO = {
    "4.": (
        "The requests of every public snapshot (whatever the model) are served again by the simulated allocator, from the state the snapshot began in. "
        "*Exact* means: every allocation at the very address PyTorch chose, every segment taken and given back in the same order, the same bytes reserved at "
        "the end. The history gives where the device put segments and when everything cached was given back; all else is the simulator's. The state at the "
        "beginning is worked out by undoing the history from its end, as `graphmem show` does; a history does not hold the sizes of blocks, and where "
        "one is not certain, a later allocation that begins behind it settles it.\n",
    ),
    "5.": (
        "The scripts of section 2, traced and served from an empty allocator: no event of the snapshot is used. Addresses of segments are made up, in rising "
        "order. A record that begins with memory in use comes after warm-up steps, other runs in the same process or loading that the script does not tell. "
        "The three beyond 1 % differ at their beginning already: one has 32.8 GB reserved by earlier runs of its process, two bf16 runs have less reserved than their warm-up "
        "steps predict (autocast drops its cache in the order of a hash table; whether that is all is not known).\n",
    ),
    "6.": (
        "All rows of the collected measurements on one GPU: peaks of `max_memory_allocated` (or active), of reserved memory, and of nvidia-smi. The source's own "
        "training code of that time is written anew in `tests/accuracy/published_models`, from the source, not from the figure; kernels are those of its release of "
        "PyTorch. *Context*: the CUDA context and library "
        "kernels outside PyTorch, as the source measured it, else the median of out-of-memory messages ([hardware](hardware.md)). A GPU that is not named "
        "is taken as an A100.\n\n"
        "What is known of the misses beyond 2 %. T051 and T052 (torchtune, LoRA and QLoRA) are predicted 0.36 and 0.38 GiB too high. Weights, optimizer "
        "states and the eight chunks of 16-bit logits alone, which the recipe holds together, already make 8.51 and 4.61 GiB, so the settings printed cannot be all of what was run; the rows of the same "
        "table between the full and the LoRA runs (checkpointing 24.9 GiB, optimizer in backward 23.1, offloading 21.8) come out within 0.5 % with the same module. T231 (BERT, fp16): cause "
        "unknown.\n",
    ),
    "7.": (
        "Each row is a file in `fixtures/measurements`, written by `graphmem measure … --json`; it is predicted anew by the code as it stands. "
        "[Contribute one](measure.md) from a GPU: none has been measured by us yet.\n",
    ),
    "8.": (
        "Liger-Kernel's benchmarks of cross-entropy and of a linear layer with cross-entropy (confidence high): forward and backward with the gradients of "
        "an earlier run alive, exact figures. Liger's own kernels are written as what they allocate (0.2.1 and 0.4.2).\n",
    ),
    "9.": (
        "Published figures of inference on one GPU (and of one GPU of several), against `graphmem infer` with the settings their sources state. vLLM prints GB and means GiB. Where a figure is printed with two "
        "digits, half of the last one is its own uncertainty: 0.3 % of the smallest. Beside these, vLLM's own functions agree with ours in all 526 cases of `fixtures/vllm_kv_cache.json`, and llama.cpp's own planner with ours on the KV "
        "buffer in all 252 of `fixtures/llama_cpp.json`; tests run both.\n\n"
        "What is known of the misses beyond 3 %. K025 (four H100, a model of 235 B in fp8): 1.4 GiB of 71 more is taken than we find; what NCCL takes for four GPUs is published nowhere, and the log is of an unnamed build. Its blocks follow another GPU "
        "of the four, which has less left than the one that printed. K010 and K018 (T4): small pools on a GPU of 14.74 GiB, where the share printed with two digits alone is 0.07 GiB. K002: three GiB left of 79, and 0.1 GiB of weights that our rule for gpt-oss on "
        "Hopper does not find. W019: blocks that are not worth splitting, 0.05 GiB, which Unsloth's loader avoids. I023: printed with two digits.\n",
    ),
    "10.": (
        "Published memory of one rank of many. *PyTorch's engines*: the source's own program of that time (torchtitan, litgpt, FSDP-QLoRA) is written anew in `tests/accuracy` and run on meta in a fake world of "
        "ranks: `fully_shard`, `DistributedDataParallel`, `FullyShardedDataParallel` and DTensor are PyTorch's own, and the allocator has a pool for each stream they use. *Megatron*: by formula "
        "(`graphmem train --engine megatron`), against exact bytes of its CI and 8 × B200 runs. Which terms there are was found with these rows in view, from the source; no coefficient is fitted to any.\n\n"
        "What is known of the misses. Runs of Megatron's CI are small (0.3 to 3 GiB): blocks that are not worth splitting, 2 to 6 MiB after a checkpoint was loaded, are most of what is left of the steady errors. Peaks of its mixtures "
        "of experts: routing is not balanced in them and not published (the same test has 2,438, 2,772 and 3,192 MiB on different dates). Context parallelism by point-to-point exchange: one more tensor a layer, not found in the source. "
        "`…cross_entropy_loss_fusion/dev_dgx_h100_2nd`: 664 MiB where every sibling has 490, cause unknown. `pr1881_fsdp2_64`: the drop from 8 to 64 GPUs is larger than states explain; cause unknown. `pr165 … op reserved`: what is allocated is "
        "exact, so the pool of the default stream has more holes than ours; FSDP2 of that month casts in another order.\n",
    ),
}
