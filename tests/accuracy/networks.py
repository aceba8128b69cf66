"""Plain torch.nn networks written for the checks: one for every mechanism that decides when memory is taken or given back."""

from __future__ import annotations

from tests.accuracy import (
    networks_attention,
    networks_convolution,
    networks_losses,
    networks_mechanics,
    networks_recurrent,
    networks_routing,
)
from tests.accuracy.network import Network

__all__ = ["Network", "networks"]


def networks() -> list[Network]:
    """All of them, by name."""
    families = (
        networks_convolution.NETWORKS,
        networks_recurrent.NETWORKS,
        networks_attention.NETWORKS,
        networks_routing.NETWORKS,
        networks_mechanics.NETWORKS,
        networks_losses.NETWORKS,
    )
    found = [network for family in families for network in family]
    by_name = {network.name: network for network in found}
    assert len(by_name) == len(found), "two networks have one name"
    return [by_name[name] for name in sorted(by_name)]
