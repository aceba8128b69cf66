"""``torch.cuda`` as the traced code sees it while a step runs: the device that is traced for, answered without a driver."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch

from graphmem.tracing.device import Device
from graphmem.tracing.patching import replaced


class _Stream:
    """A stream or an event: what is asked of it is done at once, and what waits for it need not."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.cuda_stream = 0

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *args: object) -> None:
        return None

    def query(self) -> bool:
        return True

    def record_event(self, event: _Stream | None = None) -> _Stream:
        return event or self

    def elapsed_time(self, other: _Stream) -> float:
        return 0.0

    def _waits(self, *args: Any, **kwargs: Any) -> None:
        return None

    wait_stream = wait_event = wait = record = synchronize = _waits


def _nothing(*args: Any, **kwargs: Any) -> None:
    return None


@contextlib.contextmanager
def cuda_answers(device: Device, cache_emptied: Callable[[], None]) -> Iterator[None]:
    """Questions about the device are answered from ``device``; waiting for it does nothing."""
    major, minor = device.capability
    properties = SimpleNamespace(
        name=device.name, major=major, minor=minor, multi_processor_count=device.sms, warp_size=32, is_integrated=0
    )
    answers: dict[str, Any] = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_capability": lambda device=None: (major, minor),
        "get_device_properties": lambda device=None: properties,
        "get_device_name": lambda device=None: properties.name,
        "is_bf16_supported": lambda including_emulation=True: True,
        "is_current_stream_capturing": lambda: False,
        "empty_cache": cache_emptied,
        "default_stream": lambda device=None: _Stream(),
        "current_stream": lambda device=None: _Stream(),
        "stream": lambda stream: stream or _Stream(),
        "Stream": _Stream,
        "Event": _Stream,
        **dict.fromkeys(("synchronize", "reset_peak_memory_stats", "manual_seed", "manual_seed_all"), _nothing),
    }
    with contextlib.ExitStack() as stack:
        for name, answer in answers.items():
            stack.enter_context(replaced(torch.cuda, name, answer))
        for name in ("Stream", "Event"):
            stack.enter_context(replaced(torch, name, _Stream))
        yield
