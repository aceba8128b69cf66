"""Networks whose data decides shapes or places, and networks that make new numbers: experts, scatters, samples, spectra."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.accuracy.network import Network, integers, normal

WIDTH = 16


def _rows() -> tuple[Tensor, ...]:
    return (normal(24, WIDTH),)


class Experts(nn.Module):
    """Top-2 of 4 experts, each run on the rows routed to it: shapes depend on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, 4, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, 32), nn.SiLU(), nn.Linear(32, WIDTH)) for _ in range(4)
        )

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.router(x).softmax(-1).topk(2, dim=-1)
        out = torch.zeros_like(x)
        for index, expert in enumerate(self.experts):
            rows, slot = torch.where(chosen == index)
            out.index_add_(0, rows, expert(x[rows]) * weights[rows, slot, None])
        return out


class DenseExperts(nn.Module):
    """The same routing as one batched product over all experts: shapes do not depend on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, 4)
        self.up = nn.Parameter(torch.randn(4, WIDTH, 32) / 4)
        self.down = nn.Parameter(torch.randn(4, 32, WIDTH) / 4)

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.router(x).topk(2, dim=-1)
        gates = torch.zeros_like(self.router(x)).scatter(1, chosen, weights.softmax(-1))
        hidden = torch.bmm(x.expand(4, -1, -1), self.up).relu()
        return (torch.bmm(hidden, self.down) * gates.T[..., None]).sum(0)


class Places(nn.Module):
    """Views, strided slices, index_put, scatter, gather, where, roll and cumsum."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, order: Tensor) -> Tensor:
        x = self.layer(x)
        even, odd = x[:, ::2], x[:, 1::2]
        canvas = x.new_zeros(x.shape)
        canvas[:, ::2] = odd
        canvas[order, 1] = even[:, 0]
        canvas = canvas.scatter_add(0, order[:, None].expand_as(x), x).gather(
            1, order[None, :WIDTH].expand_as(x) % WIDTH
        )
        canvas = torch.where(canvas > 0, canvas, canvas.roll(1, 0)).cumsum(1)
        return canvas.T.contiguous().view(-1, 4).flip(0).index_select(0, order)


class Centred(nn.Module):
    """x less a running mean, which is updated in place in training."""

    def __init__(self, mean: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                self.mean.mul_(0.9).add_(x.mean(0), alpha=0.1)
        return x - self.mean


class Shared(nn.Module):
    """One layer under two names, and one running mean that two modules hold."""

    def __init__(self) -> None:
        super().__init__()
        layer, mean = nn.Linear(WIDTH, WIDTH), torch.zeros(WIDTH)
        self.first, self.second = layer, layer
        self.before, self.between = Centred(mean), Centred(mean)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.between(self.first(self.before(x)).tanh()))


class VariationalAutoencoder(nn.Module):
    """Kingma and Welling's: a sample from the encoder's normal distribution, by reparametrisation."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(WIDTH, 32), nn.ReLU(), nn.Linear(32, 8))
        self.decode = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, WIDTH))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = self.encode(x).chunk(2, dim=-1)
        sample = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        divergence = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum(-1)
        return nn.functional.mse_loss(self.decode(sample), x), divergence.mean()


class Spectrum(nn.Module):
    """A Fourier layer: complex weights on the lower frequencies of a real signal."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH, dtype=torch.complex64) / WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(x, dim=-2)
        low = torch.einsum("bfi,io->bfo", spectrum[:, :8], self.weight)
        padded = torch.cat([low, torch.zeros_like(spectrum[:, 8:])], dim=1)
        return torch.fft.irfft(padded, n=x.shape[-2], dim=-2) + spectrum.abs()[:, :1]


class ManyOutputs(nn.Module):
    """A trunk with three heads in a nested structure, one of them without gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Linear(WIDTH, 32)
        self.heads = nn.ModuleDict({"class": nn.Linear(32, 5), "box": nn.Linear(32, 4)})

    def forward(self, x: Tensor) -> dict[str, object]:
        x = torch.tanh(self.trunk(x))
        return {"heads": [self.heads["class"](x).log_softmax(-1), self.heads["box"](x)], "best": x.detach().argmax(-1)}


NETWORKS = [
    Network("experts-routed", Experts, _rows),
    Network("experts-dense", DenseExperts, _rows),
    Network("views-and-scatters", Places, lambda: (normal(24, WIDTH), integers(24, 24))),
    Network("shared-layer-and-buffer", Shared, _rows),
    Network("variational-autoencoder", VariationalAutoencoder, _rows, lambda parts: parts[0] + 0.1 * parts[1]),
    Network("fourier-complex", Spectrum, lambda: (normal(3, 20, WIDTH),)),
    Network("many-outputs", ManyOutputs, _rows),
]
