"""``torch.cuda`` as the traced code sees it while a step runs: the device that is traced for, answered without a driver."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch

from graphmem.tracing.device import Device
from graphmem.tracing.patching import replaced


class _Event:
    """What waits for it need not: everything that is asked of the device is done at once."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def query(self) -> bool:
        return True

    def elapsed_time(self, other: _Event) -> float:
        return 0.0

    def record(self, *args: Any, **kwargs: Any) -> None:
        return None

    wait = synchronize = record


class _Streams:
    """The streams of the device: a number each, from 0, the default one, and which is current."""

    def __init__(self, entered: Callable[[int], None]) -> None:
        self._entered, self._made = entered, 0
        self.default = self.current = _Stream(self, 0)

    def new(self, *args: Any, **kwargs: Any) -> _Stream:
        self._made += 1
        return _Stream(self, self._made)

    def switch(self, stream: _Stream) -> None:
        self.current = stream
        self._entered(stream.cuda_stream)


class _Stream:
    """A stream; what is asked of it is done at once."""

    def __init__(self, streams: _Streams, number: int) -> None:
        self._streams, self.cuda_stream = streams, number
        self._before: list[_Stream] = []

    def __enter__(self) -> _Stream:
        self._before.append(self._streams.current)
        self._streams.switch(self)
        return self

    def __exit__(self, *args: object) -> None:
        self._streams.switch(self._before.pop())

    def query(self) -> bool:
        return True

    def record_event(self, event: _Event | None = None) -> _Event:
        return event or _Event()

    def _waits(self, *args: Any, **kwargs: Any) -> None:
        return None

    wait_stream = wait_event = synchronize = _waits


def _nothing(*args: Any, **kwargs: Any) -> None:
    return None


@contextlib.contextmanager
def cuda_answers(
    device: Device, cache_emptied: Callable[[], None], stream_entered: Callable[[int], None]
) -> Iterator[None]:
    """Questions about the device are answered from ``device``; waiting for it does nothing."""
    streams = _Streams(stream_entered)
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
        "default_stream": lambda device=None: streams.default,
        "current_stream": lambda device=None: streams.current,
        "stream": lambda stream: stream or streams.current,
        "set_stream": streams.switch,
        "Stream": streams.new,
        "Event": _Event,
        "get_rng_state": lambda device=None: torch.get_rng_state(),
        **dict.fromkeys(
            ("synchronize", "reset_peak_memory_stats", "manual_seed", "manual_seed_all", "set_rng_state"), _nothing
        ),
    }
    with contextlib.ExitStack() as stack:
        for name, answer in answers.items():
            stack.enter_context(replaced(torch.cuda, name, answer))
        for name in ("Stream", "Event"):
            stack.enter_context(replaced(torch, name, answers[name]))
        yield
