"""How people read bytes and counts: GiB and MiB (2^30, 2^20), always labelled as such."""

from __future__ import annotations

KIB, MIB, GIB, TIB = 2**10, 2**20, 2**30, 2**40


def format_bytes(count: float) -> str:
    """``7642159104`` → ``"7.12 GiB"``. Binary units only, so that a GB of 10^9 can never be confused with them."""
    for unit, size in (("TiB", TIB), ("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if abs(count) >= size:
            return f"{count / size:,.2f} {unit}"
    return f"{int(count)} B"


_BINARY = {"kib": KIB, "mib": MIB, "gib": GIB, "tib": TIB}
_DECIMAL = {"kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_SIZES = {"": 1, "b": 1, **_BINARY, **_DECIMAL}


def parse_bytes(text: str) -> int:
    """``"23.5GiB"`` → 25233981440; GB is 10^9.

    Raises:
        ValueError: it is no number of bytes.
    """
    written = text.strip().lower()
    number = written.rstrip("kmgtib ")
    try:
        return int(float(number) * _SIZES[written[len(number) :].strip()])
    except (KeyError, ValueError, OverflowError):
        raise ValueError(f"{text!r} is no size; write it as 24GiB, 80GB or a number of bytes") from None


def round_up(value: int, to: int) -> int:
    """The next multiple of ``to``."""
    return -(-value // to) * to


def format_count(count: float) -> str:
    """``3821079552`` → ``"3,821,079,552"``: parameters are counted, not rounded."""
    return f"{count:,.0f}"


def format_short_count(count: float) -> str:
    """``3821079552`` → ``"3.82 B"``, for headlines only."""
    for unit, size in (("T", 10**12), ("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if abs(count) >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count:.0f}"


def format_share(share: float) -> str:
    """``0.6323`` → ``"63.23 %"``."""
    return f"{share * 100:.2f} %"
