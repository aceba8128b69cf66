"""Tracing beside PyTorch's own MemTracker, and how its cost grows: the part of ``python -m tests.speed`` about ``graphmem trace``."""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

#: One training step of Phi-3-mini's shape under torch.distributed's MemTracker, on fake tensors; prints seconds.
MEMTRACKER = """
import sys, time, torch, transformers
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
with FakeTensorMode():
    model = transformers.AutoModelForCausalLM.from_config(transformers.Phi3Config(num_hidden_layers=int(sys.argv[1]))).train()
    ids = torch.zeros(1, 2048, dtype=torch.int64)
    optimizer = torch.optim.AdamW(model.parameters(), foreach=True)
    tracker = MemTracker()
    tracker.track_external(model, optimizer, ids)
    started = time.perf_counter()
    with tracker:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()
    print(time.perf_counter() - started)
"""
#: The same step traced by graphmem; arguments are layers and whether to fold.
GRAPHMEM = """
import sys, time, torch, transformers, graphmem
with torch.device("meta"):
    model = transformers.AutoModelForCausalLM.from_config(transformers.Phi3Config(num_hidden_layers=int(sys.argv[1]))).train()
ids = torch.zeros(1, 2048, dtype=torch.int64)
graphmem.trace(torch.nn.Linear(1, 1), torch.zeros(1, 1), step="train")  # imports, which MemTracker has behind it too
started = time.perf_counter()
graphmem.trace(model, {"input_ids": ids, "labels": ids, "use_cache": False}, step="train", fold=sys.argv[2] == "fold")
print(time.perf_counter() - started)
"""
#: Llama-3.1-405B, one training step at 8,192 tokens: seconds after imports (building the model included), and megabytes.
LARGE = """
import resource, time, torch, transformers, graphmem
graphmem.trace(torch.nn.Linear(1, 1), torch.zeros(1, 1), step="train")
import transformers.models.llama.modeling_llama
started = time.perf_counter()
graphmem.trace("meta-llama/Meta-Llama-3.1-405B", step="train", seq_len=8192, offline=True)
print(time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""
#: A million requests through the allocator; arguments are settings and whether to keep the columns. Prints seconds of one core, and the
#: megabytes that serving them added to the process.
ALLOCATOR = """
import random, resource, sys, time
from graphmem.timeline.allocator.caching import CachingAllocator
from graphmem.timeline.allocator.conf import alloc_conf
from graphmem.timeline.allocator.simulate import Request, simulate
random.seed(0)
sizes = [512 * random.randint(1, 40) if random.random() < 0.5 else 4096 * random.randint(300, 20000) for _ in range(60)]
live, requests = [], []
for number in range(1_000_000):
    if live and (len(live) > 1500 or random.random() < 0.5):
        requests.append(Request("free", live.pop(random.randrange(max(0, len(live) - 20), len(live)))))
    else:
        requests.append(Request("alloc", number, random.choice(sizes)))
        live.append(number)
allocator = CachingAllocator(alloc_conf(sys.argv[1]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
started = time.process_time()
if sys.argv[2] == "columns":
    simulate(requests, allocator)
else:
    blocks = {}
    for action, number, nbytes, stream in requests:
        if action == "alloc":
            blocks[number] = allocator.allocate(nbytes)
        else:
            allocator.free(blocks.pop(number))
print(time.process_time() - started, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def _printed(script: str, *arguments: str) -> list[float]:
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True)
    return [float(word) for word in done.stdout.split()]


def _median(script: str, *arguments: str, runs: int = 3) -> float:
    return statistics.median(_printed(script, *arguments)[0] for _ in range(runs))


def _traced(layers: int = 32, batch: int = 1, tokens: int = 2048, fold: bool = True) -> Callable[[], object]:
    import torch
    import transformers

    import graphmem

    with torch.device("meta"):
        config = transformers.Phi3Config(num_hidden_layers=layers)
        model = transformers.AutoModelForCausalLM.from_config(config).train()
    ids = torch.zeros(batch, tokens, dtype=torch.int64, device="meta")
    inputs = {"input_ids": ids, "labels": ids, "use_cache": False}
    return lambda: graphmem.trace(model, inputs, step="train", fold=fold)


def _seconds(work: Callable[[], object]) -> float:
    times = []
    for _ in range(3):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def report() -> None:
    """Measure and print."""
    print(
        "\n## Tracing one training step\n\nPhi-3-mini's shape, 2,048 tokens, AdamW; each in a process of its own, imports and building left out. Medians of 3 (MemTracker 1).\n"
    )
    print("| layers | MemTracker, s | graphmem, every layer, s | ratio | graphmem, folded, s |\n|--:|--:|--:|--:|--:|")
    for layers in (8, 16, 32):
        theirs = _printed(MEMTRACKER, str(layers))[0]
        ours, folded = _median(GRAPHMEM, str(layers), "whole"), _median(GRAPHMEM, str(layers), "fold")
        print(f"| {layers} | {theirs:.2f} | {ours:.2f} | {theirs / ours:.0f}× | {folded:.2f} |")
    seconds, megabytes = _printed(LARGE)
    print(
        f"\nLlama-3.1-405B (126 layers), one training step at 8,192 tokens, building the model included: {seconds:.2f} s, {megabytes:.0f} MB.\n"
    )
    print("### What the cost grows with\n\nFolded traces of the same shape, one process.\n\n| | s |\n|:--|--:|")
    for name, work in {
        "32 layers, batch 1, 2,048 tokens": _traced(),
        "64 layers": _traced(layers=64),
        "128 layers": _traced(layers=128),
        "batch 64": _traced(batch=64),
        "65,536 tokens": _traced(tokens=65_536),
        "32 layers, every one run": _traced(fold=False),
        "64 layers, every one run": _traced(layers=64, fold=False),
    }.items():
        print(f"| {name} | {_seconds(work):.2f} |")
    print(f"\nPeak of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB.")
    print(
        "\n## A million allocations and releases through the allocator\n\n| settings | s of one core | MB added |\n|:--|--:|--:|"
    )
    for settings, columns in (("", "columns"), ("expandable_segments:True", "columns"), ("", "none")):
        seconds, megabytes = _printed(ALLOCATOR, settings, columns)
        what = (settings or "default") + (
            ", reserved and the rest after every event" if columns == "columns" else ", the state alone"
        )
        print(f"| {what} | {seconds:.2f} | {megabytes:.0f} |")
