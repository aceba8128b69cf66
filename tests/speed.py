"""``python -m tests.speed``: graphmem beside its peers on the same work, in one run. Prints medians and ratios, asserts nothing.

Every program runs cold, as a process of its own. hf-mem and accelerate read from the same local Hub as graphmem.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from graphmem.sources.catalog import read_catalog
from tests import speed_trace
from tests.checkpoints import safetensors_file, sharded, write_all
from tests.hub import Hub
from tests.models import config_bytes, tensor

RUNS = 7
MODEL = "microsoft/Phi-3-mini-128k-instruct"
GRAPHMEM = [sys.executable, "-m", "graphmem", "inspect"]
#: hf-mem writes the Hub's address into its requests; here they go to the local one.
HF_MEM = """
import os, sys, httpx2
get = httpx2.AsyncClient.get
async def local(self, url, **options):
    return await get(self, str(url).replace("https://huggingface.co", os.environ["HF_ENDPOINT"]), **options)
httpx2.AsyncClient.get = local
from hf_mem.cli import main
sys.argv = ["hf-mem", "--model-id", sys.argv[1]]
main()
"""


@dataclass(frozen=True)
class Run:
    """Medians of several cold runs of one program."""

    seconds: float
    megabytes: float


def measure(command: Sequence[str], env: Mapping[str, str], runs: int = RUNS) -> Run:
    """Wall time and peak resident memory (medians) of ``command``, started afresh each time."""
    seconds, memory = [], []
    for _ in range(runs):
        started = time.perf_counter()
        process = subprocess.Popen(
            command, env={**os.environ, **env}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        assert process.stderr
        errors = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        seconds.append(time.perf_counter() - started)
        memory.append(usage.ru_maxrss / 1024)
        if os.waitstatus_to_exitcode(status):
            raise SystemExit(f"{' '.join(command)} failed: {errors.decode()[-500:]}")
    return Run(statistics.median(seconds), statistics.median(memory))


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as home:
        hub = Hub().start()
        env = {"HF_ENDPOINT": hub.url, "HF_HOME": home, "HF_HUB_DISABLE_TELEMETRY": "1"}
        _start_up(hub, env)
        _large(hub, env, Path(home))
    speed_trace.report()


def _start_up(hub: Hub, env: dict[str, str]) -> None:
    section = read_catalog(MODEL, "speed").sections[0]
    hub.add(MODEL, {"config.json": json.dumps(section.config).encode(), **sharded(section.tensors, 2)})
    hf_mem = measure([sys.executable, "-c", HF_MEM, MODEL], env)
    accelerate = measure([str(Path(sys.executable).parent / "accelerate"), "estimate-memory", MODEL], env, 3)
    rows = {
        "graphmem inspect, built-in catalog (`--offline`)": measure([*GRAPHMEM, MODEL, "--offline"], env),
        "graphmem inspect, from the local Hub": measure([*GRAPHMEM, MODEL], env),
    }
    cache = Path(env["HF_HOME"], "hub", "models--" + MODEL.replace("/", "--"))
    write_all(cache / "snapshots" / "abc", hub.repos[MODEL].files)
    write_all(cache, {"refs/main": b"abc"})
    rows["graphmem inspect, Hub cache (`HF_HUB_OFFLINE=1`)"] = measure(
        [*GRAPHMEM, MODEL], {**env, "HF_HUB_OFFLINE": "1"}
    )
    rows["hf-mem, from the local Hub"] = hf_mem
    rows["accelerate estimate-memory, from the local Hub"] = accelerate
    print(
        "# Speed\n\n`python -m tests.speed` prints this page: every program as a process of its own, in one run, against one local Hub."
    )
    print("Machines differ and are noisy; the differences and ratios within a run are what counts.\n")
    print(f"## Cold start, {MODEL}\n\nMedians of {RUNS} runs (accelerate 3).\n")
    print("| | ms | against hf-mem | accelerate against it | MB |\n|:--|--:|--:|--:|--:|")
    for name, run in rows.items():
        print(
            f"| {name} | {run.seconds * 1000:.0f} | {(run.seconds - hf_mem.seconds) * 1000:+.0f} ms | "
            f"{accelerate.seconds / run.seconds:.1f}× | {run.megabytes:.0f} |"
        )


def _large(hub: Hub, env: dict[str, str], home: Path) -> None:
    experts = [
        tensor(f"model.layers.{n}.mlp.experts.{e}.up_proj.weight", 64, 64) for n in range(40) for e in range(250)
    ]
    many = {"config.json": config_bytes(), **sharded(experts, 413)}
    folder = write_all(home / "many", many)
    hub.add("org/many", many)
    hub.add("org/slow", {"config.json": config_bytes(), **sharded(experts[:1630], 163)}, latency=0.05)
    one = hub.add(
        "org/one", {"config.json": config_bytes(), "model.safetensors": safetensors_file(experts)}, latency=0.05
    )
    rows = {
        "10,000 tensors in 413 shards, local folder": measure([*GRAPHMEM, str(folder)], env, 3),
        "10,000 tensors in 413 shards, local Hub": measure([*GRAPHMEM, "org/many"], env, 3),
        "163 shards, every request 50 ms late": measure([*GRAPHMEM, "org/slow"], env, 5),
        "one file of 10,000 tensors, every request 50 ms late": measure([*GRAPHMEM, one], env, 3),
    }
    print("\n## Large and far checkpoints\n\nMedians.\n\n| | ms | MB |\n|:--|--:|--:|")
    for name, run in rows.items():
        print(f"| {name} | {run.seconds * 1000:.0f} | {run.megabytes:.0f} |")


if __name__ == "__main__":
    main()
