"""Recurrent networks, and tables of embeddings."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from tests.accuracy.network import Network, integers, normal

VOCABULARY = 50


def _sequence() -> tuple[Tensor, ...]:
    return (normal(3, 11, 16),)


class Last(nn.Module):
    """The outputs of a recurrent layer over a batch-first sequence, without its state."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]


class Packed(nn.Module):
    """A bidirectional LSTM over sequences of three lengths, packed."""

    LENGTHS = (11, 7, 2)

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LSTM(16, 24, num_layers=2, bidirectional=True, batch_first=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        packed = pack_padded_sequence(x, list(self.LENGTHS), batch_first=True)
        outputs, (state, _) = self.layer(packed)
        return pad_packed_sequence(outputs, batch_first=True)[0], state


class Cells(nn.Module):
    """GRU and LSTM cells stepped by a Python loop."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.lstm = nn.GRUCell(16, 12), nn.LSTMCell(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        inner = x.new_zeros(x.shape[0], 12)
        outer = (x.new_zeros(x.shape[0], 8), x.new_zeros(x.shape[0], 8))
        for step in x.unbind(1):
            inner = self.gru(step, inner)
            outer = self.lstm(inner, outer)
        return outer[0]


class Bags(nn.Module):
    """Token embeddings averaged by an EmbeddingBag, beside a padded Embedding, summed over the sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(VOCABULARY, 16, mode="mean")
        self.table = nn.Embedding(VOCABULARY, 16, padding_idx=0)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.bag(tokens) * self.table(tokens).sum(1)


class TiedLanguageModel(nn.Module):
    """A GRU whose head is its own embedding table."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(VOCABULARY, 16)
        self.layer = nn.GRU(16, 16, batch_first=True)
        self.head = nn.Linear(16, VOCABULARY, bias=False)
        self.head.weight = self.table.weight

    def forward(self, tokens: Tensor) -> Tensor:
        logits = self.head(self.layer(self.table(tokens))[0])
        return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def _tokens() -> tuple[Tensor, ...]:
    return (integers(VOCABULARY, 3, 11),)


NETWORKS = [
    Network("rnn", lambda: Last(nn.RNN(16, 24, nonlinearity="relu", batch_first=True)), _sequence),
    Network("lstm-two-layers-dropout", lambda: Last(nn.LSTM(16, 24, 2, dropout=0.1, batch_first=True)), _sequence),
    Network("gru-bidirectional", lambda: Last(nn.GRU(16, 24, 2, bidirectional=True, batch_first=True)), _sequence),
    Network("lstm-packed", Packed, _sequence),
    Network("recurrent-cells", Cells, _sequence),
    Network("embedding-bag", Bags, _tokens),
    Network("tied-language-model", TiedLanguageModel, _tokens, lambda loss: loss),
]
