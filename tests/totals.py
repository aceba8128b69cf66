"""``python -m tests.totals``: every checkpoint in ../shared/models that has an index, built and held against its true total."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from graphmem.errors import GraphmemError
from graphmem.sources.index import read_index
from graphmem.sources.local import LocalFolder
from graphmem.sources.weights import Findings, read_model

#: Why a row is not exact, where the tool's own message does not say it all: part of the folder's name → what is known.
REASONS = {
    "Llama-2-13B-bnb-nf4": "280 quant_state tensors are JSON text (171.6 bytes on average), whose length only the file tells",
    "Llama-2-70B-lzlv": "the index has no total_size",
    "Cosmos-Reason2-8B": "the index's total_size is 0",
    "Mistral-Small-119B-MoE-4bit-mlx": "MLX stacks and packs the experts (switch_mlp) under names transformers does not know",
    "Qwen3.5-9B": "15 tensors of the extra prediction layer (mtp.*), which transformers' class leaves out",
    "RedPajama-INCITE-7B-Base": "the publisher's total counts boolean masks at 1/8 byte an element; they take a whole byte",
    "stable-diffusion-3.5-large__flattened": "the folder's config.json is that of another component",
    "instructcodet5p-16b": "needs the repository's own code",
}


@dataclass(frozen=True)
class Row:
    """One checkpoint: what its index says, what we count, and why they differ if they do."""

    name: str
    declared: object
    counted: int | None
    reason: str

    @property
    def exact(self) -> bool:
        return self.counted is not None and self.counted == self.declared


def rows(models: Path) -> list[Row]:
    """A row for each folder with an index at its root."""
    result = []
    for folder in sorted(path for path in models.iterdir() if path.is_dir()):
        repository = LocalFolder(folder)
        indexes = sorted(
            (p for p in repository.files if p.endswith(".index.json") and "/" not in p and p != "model_index.json"),
            reverse=True,
        )
        indexes.sort(key=lambda path: "safetensors" not in path)
        if indexes:
            result.append(_row(folder.name, repository, indexes[0]))
    return result


def _row(name: str, repository: LocalFolder, index: str) -> Row:
    declared = read_index(repository, index).total_size
    findings = Findings()
    try:
        spec = read_model(repository, findings)
    except GraphmemError as error:
        return Row(name, declared, None, str(error))
    known = next((reason for part, reason in REASONS.items() if part in name), "")
    if not spec.tensors:
        return Row(name, declared, None, known or findings.warnings[-1])
    counted = spec.nbytes
    return Row(name, declared, counted, "" if counted == declared else known)


def markdown(table: list[Row]) -> str:
    """The table for people."""
    exact = sum(row.exact for row in table)
    lines = [
        "# Totals\n",
        "Checkpoints whose genuine config.json and index are at hand: each is built from its config on the meta device, its tensors",
        "are matched to the index's names, and their bytes are held against the total its publisher recorded.",
        "`python -m tests.totals` prints this page, where those files (others' work, not in this repository) lie beside the checkout.\n",
        f"{exact} of {len(table)} are exact to the byte. Most others need code from their own repository, which graphmem does not run.",
        "",
        "| checkpoint | index says | counted | |",
        "|:--|--:|--:|:--|",
    ]
    for row in table:
        said = f"{row.declared:,.0f}" if isinstance(row.declared, int | float) else "–"
        counted = f"{row.counted:,}" if row.counted is not None else "–"
        lines.append(
            f"| {row.name.replace('__', '/', 1)} | {said} | {counted} | {'exact' if row.exact else row.reason} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    folder = Path(__file__).resolve().parents[2] / "shared" / "models"
    if not folder.is_dir():
        raise SystemExit(
            f"{folder} is not there: this page needs configs and indexes of others, which are not in the repository"
        )
    print(markdown(rows(folder)), end="")
