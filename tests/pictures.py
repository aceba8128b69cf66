"""``python -m tests.pictures``: the pictures of docs/memory.md, drawn from simulations. A test draws them again and compares."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import graphmem
from graphmem.timeline.allocator.simulate import Simulation
from graphmem.tracing.trace import Trace
from graphmem.units import GIB, MIB, format_bytes

FOLDER = Path(__file__).parents[1] / "docs" / "images"
_WIDTH, _HEIGHT, _LEFT, _BELOW = 860, 300, 70, 40
_STYLE = (
    "text{font:12px sans-serif;fill:#333}.title{font-weight:bold;font-size:13px}.axis{stroke:#999;stroke-width:1}"
    ".grid{stroke:#eee}.used{fill:#3b76af}.free{fill:#f3c98b}.segment{fill:none;stroke:#333;stroke-width:.6}"
)


def step() -> Trace:
    """Two training steps of GPT-2, batch 4 × 512 tokens, on an A100-40GB."""
    return graphmem.trace(
        "openai-community/gpt2", step="train", steps=2, batch_size=4, seq_len=512, gpu="A100-40GB", offline=True
    )


def _svg(height: float, parts: Sequence[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height:.0f}" role="img">'
    white = f'<rect width="{_WIDTH}" height="{height:.0f}" fill="#fff"/>'
    return "\n".join([head, f"<style>{_STYLE}</style>", white, *parts, "</svg>"]) + "\n"


def timeline(trace: Trace) -> str:
    """Tensors, reserved and nvidia-smi after each event of two steps."""
    found = trace.simulation
    context = trace.device.context[1] if trace.device.context else 0
    top = (max(found.reserved) + context) * 1.08
    lines = (
        ("nvidia-smi: reserved + CUDA context", [value + context for value in found.reserved], "#999", "none"),
        ("reserved: what PyTorch holds", found.reserved, "#d07c28", "none"),
        ("allocated: what tensors use", found.allocated, "#3b76af", "#3b76af33"),
    )
    parts = [
        f'<text class="title" x="{_LEFT}" y="18">GPT-2, two training steps of 4 × 512 tokens, event by event</text>'
    ]
    for gib in range(int(top / GIB) + 1):
        y = _down(gib * GIB, top)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - 10}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{gib} GiB</text>')
    for index, (name, values, colour, fill) in enumerate(lines):
        parts.append(_line(values, top, colour, fill))
        y = 40 + 16 * index
        parts.append(f'<rect x="{_LEFT + 12}" y="{y - 8}" width="14" height="4" fill="{colour}"/>')
        parts.append(f'<text x="{_LEFT + 32}" y="{y - 2}">{name}, at most {format_bytes(max(values))}</text>')
    second = next(i for i, event in enumerate(trace.events) if event.op is not None and trace.ops[event.op].step == 1)
    x = _LEFT + (_WIDTH - 10 - _LEFT) * second / len(trace.events)
    parts.append(
        f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="30" y2="{_HEIGHT - _BELOW}" stroke-dasharray="3 3"/>'
    )
    parts.append(f'<text x="{x + 5:.1f}" y="{_HEIGHT - _BELOW + 16}">second step</text>')
    parts.append(f'<text x="{_LEFT}" y="{_HEIGHT - _BELOW + 16}">weights, first step</text>')
    return _svg(_HEIGHT, parts)


def _down(value: float, top: float) -> float:
    return (_HEIGHT - _BELOW) - value / top * (_HEIGHT - _BELOW - 25)


def _line(values: Sequence[int], top: float, colour: str, fill: str) -> str:
    """A stepped line; of the points that fall on one column of pixels, the highest."""
    columns: dict[int, int] = {}
    for index, value in enumerate(values):
        column = int((_WIDTH - 10 - _LEFT) * index / len(values))
        columns[column] = max(columns.get(column, 0), value)
    points = " ".join(f"{_LEFT + column},{_down(value, top):.1f}" for column, value in columns.items())
    floor = f"{_LEFT + max(columns)},{_down(0, top):.1f} {_LEFT},{_down(0, top):.1f}"
    shape = f'<polygon points="{points} {floor}" fill="{fill}"/>' if fill != "none" else ""
    return f'{shape}<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>'


def segments(trace: Trace) -> str:
    """Every large segment at the end of the second step, and the same step with expandable segments."""
    parts, y = [], 20.0
    for title, found in (
        ("default", trace.simulate("")),
        ("expandable_segments:True", trace.simulate("expandable_segments:True")),
    ):
        reserved, free = found.reserved[-1], found.reserved[-1] - found.active[-1]
        parts.append(
            f'<text class="title" x="10" y="{y}">{title}: {format_bytes(reserved)} reserved, {format_bytes(free)} of it free, '
            f"largest free block {format_bytes(found.largest_free[-1])}, {len(found.segments)} segments</text>"
        )
        y += 8
        drawn, y = _rows(found, y)
        parts += [*drawn]
        y += 26
    parts.append(
        f'<rect class="used" x="10" y="{y - 14}" width="12" height="12"/><text x="28" y="{y - 4}">in use</text>'
    )
    parts.append(
        f'<rect class="free" x="90" y="{y - 14}" width="12" height="12"/><text x="108" y="{y - 4}">free, but reserved</text>'
    )
    return _svg(y + 6, parts)


_ROW, _ROW_MIB = 12, 320


def _rows(found: Simulation, y: float) -> tuple[list[str], float]:
    """Segments side by side, wrapped at 320 MiB a row; an expandable one goes on in the next row."""
    scale = (_WIDTH - 20) / (_ROW_MIB * MIB)
    parts: list[str] = []
    position = 0
    for segment in sorted(found.segments, key=lambda segment: segment.size):
        if segment.small:
            continue
        if not segment.expandable and position % (_ROW_MIB * MIB) + segment.size > _ROW_MIB * MIB:
            position = -(-position // (_ROW_MIB * MIB)) * _ROW_MIB * MIB
        for block in segment.blocks:
            parts += _bars(position + block.address - segment.address, block.size, block.state != "inactive", y, scale)
        parts += _frames(position, segment.size, y, scale)
        position += segment.size
    return parts, y + (position // (_ROW_MIB * MIB) + 1) * (_ROW + 3)


def _pieces(begin: int, size: int) -> Iterator[tuple[int, int, int]]:
    """(row, offset in it, bytes) of a stretch that may go over several rows."""
    width = _ROW_MIB * MIB
    while size > 0:
        row, offset = divmod(begin, width)
        part = min(size, width - offset)
        yield row, offset, part
        begin, size = begin + part, size - part


def _bars(begin: int, size: int, used: bool, y: float, scale: float) -> list[str]:
    return [
        f'<rect class="{"used" if used else "free"}" x="{10 + offset * scale:.1f}" y="{y + row * (_ROW + 3):.0f}" '
        f'width="{part * scale:.1f}" height="{_ROW}"/>'
        for row, offset, part in _pieces(begin, size)
    ]


def _frames(begin: int, size: int, y: float, scale: float) -> list[str]:
    return [bar.replace('class="used"', 'class="segment"') for bar in _bars(begin, size, True, y, scale)]


def pictures() -> dict[str, str]:
    """File name → SVG."""
    trace = step()
    return {"reserved.svg": timeline(trace), "fragmentation.svg": segments(trace)}


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, svg in pictures().items():
        (FOLDER / name).write_text(svg)
