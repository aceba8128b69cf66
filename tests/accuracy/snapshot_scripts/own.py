"""The scripts that ran decoders of their own authors, and those that ran models made of `torch.nn` layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from tests.accuracy.snapshot_models.course import Sizes, whole
from tests.accuracy.snapshot_models.ctknight import FusedLM
from tests.accuracy.snapshot_models.from_torch import ResNet50, ToyLM
from tests.accuracy.snapshot_models.kkaitlyn111 import FilledLM
from tests.accuracy.snapshot_models.niuhuangxiaozi import CopyingLM
from tests.accuracy.snapshot_models.qr_0w import MadeOnceLM
from tests.accuracy.snapshot_models.silmont2000 import RotatedLM
from tests.accuracy.snapshot_optimizers import (
    InPlaceAdamW,
    NiuAdam,
    OneHotCrossEntropy,
    cross_entropy_by_gather,
    cross_entropy_by_index,
)
from tests.accuracy.snapshot_scripts.stage import HOST, Mark, autocast, tokens


def kkaitlyn_forward(sizes: Sizes, bf16: bool, earlier: bool, mark: Mark) -> None:
    """`earlier`: the same process had run shorter contexts before, so the cuBLAS workspace was there already."""
    if earlier:
        FilledLM(replace(sizes, layers=1))(tokens(4, sizes.context))
    model = FilledLM(sizes)
    inputs = tokens(4, sizes.context)
    with autocast(bf16):
        mark("start")
        logits = model(inputs)  # noqa: F841
    mark("end")


def kkaitlyn_training(sizes: Sizes, mark: Mark) -> None:
    """The first step of a new model, so the optimizer makes its moments inside the record."""
    model = FilledLM(sizes)
    optimizer = InPlaceAdamW(model.parameters())
    inputs = tokens(4, sizes.context)
    targets = inputs
    mark("start")
    optimizer.zero_grad()
    logits = model(inputs)
    loss = cross_entropy_by_index(logits, targets)
    loss.backward()
    optimizer.step()
    mark("end")


def silmont_forward(sizes: Sizes, mark: Mark) -> None:
    model = RotatedLM(sizes)
    inputs = tokens(4, sizes.context)

    def step() -> None:
        with torch.no_grad():
            _ = model(inputs)

    step()
    mark("start")
    step()
    mark("end")


def qr_forward(sizes: Sizes, bf16: bool, mark: Mark) -> None:
    model = MadeOnceLM(sizes)
    inputs = tokens(4, sizes.context)
    qr_step(model, inputs, bf16)
    mark("start")
    qr_step(model, inputs, bf16)
    mark("end")


def qr_everything(sizes: Sizes, mark: Mark) -> None:
    """Recorded from before the model was built on the GPU to the end of its first step."""
    mark("start")
    model = MadeOnceLM(sizes)
    inputs = tokens(4, sizes.context)
    targets = tokens(4, sizes.context)  # noqa: F841
    qr_step(model, inputs, bf16=False)
    mark("end")


def qr_step(model: nn.Module, inputs: Tensor, bf16: bool) -> None:
    with torch.no_grad(), autocast(bf16):
        _ = model(inputs)


def ctknight_forward(sizes: Sizes, bf16: bool, mark: Mark) -> None:
    model = FusedLM(sizes)
    inputs, targets = tokens(4, sizes.context), tokens(4, sizes.context)

    def forward() -> Tensor:
        logits = model(inputs)
        return cross_entropy_by_gather(logits.reshape(-1, sizes.vocab), targets.reshape(-1))

    def step() -> None:
        with torch.no_grad(), autocast(bf16):
            _ = forward()

    step()
    mark("start")
    step()
    mark("end")


def niu_forward(sizes: Sizes, sequence: int, mark: Mark) -> None:
    """Recorded from before the model was built; three forward passes whose outputs nobody keeps."""
    mark("start")
    model = CopyingLM(sizes)
    inputs = torch.randint(0, sizes.vocab, (10, sequence), device=HOST).to(torch.get_default_device())
    for _ in range(3):
        model(inputs)
    mark("end")


def niu_training(sizes: Sizes, sequence: int, bf16: bool, mark: Mark) -> None:
    """Recorded from before the model was built; autocast covers backward and optimizer too."""
    device = torch.get_default_device()
    mark("start")
    model = CopyingLM(sizes)
    optimizer = NiuAdam(model.parameters())
    inputs = torch.randint(0, sizes.vocab, (10, sequence), device=HOST).to(device)
    labels = torch.randint(0, sizes.vocab, (10,), device=HOST).to(device)
    with autocast(bf16):
        for _ in range(3):
            optimizer.zero_grad()
            logits = model(inputs)
            last = whole(whole(logits, 0)[:, -1], 1)
            loss = OneHotCrossEntropy()(last, labels)
            loss.backward()
            optimizer.step()
    mark("end")


def hanfa_inference(sizes: Sizes, mark: Mark) -> None:
    """Built on the CPU and moved inside the record; 25 forward passes with the loss."""
    device = torch.get_default_device()
    criterion = nn.CrossEntropyLoss()
    inputs, targets = tokens(32, sizes.context, vocab=sizes.vocab), tokens(32, sizes.context, vocab=sizes.vocab)

    def run(model: nn.Module) -> None:
        for _ in range(25):
            with torch.no_grad():
                logits = model(inputs)
                loss = criterion(logits.view(-1, logits.size(-1)), targets.view(-1))  # noqa: F841

    with HOST:
        built = ToyLM(sizes)
    mark("start")
    model = built.to(device)
    run(model)
    mark("end")


def resnet50_training(
    optimizer_of: Callable[[nn.Module], torch.optim.Optimizer], every: int, mark: Mark, steps: int = 10
) -> None:
    """tonghuikang's: ResNet-50 on one image with soft labels; the optimizer steps on every `every`-th iteration."""
    model = ResNet50()
    inputs = torch.randn(1, 3, 224, 224)
    labels = torch.rand_like(model(inputs))
    optimizer = optimizer_of(model)
    criterion = nn.CrossEntropyLoss()
    mark("start")
    for step in range(steps):
        predicted = model(inputs)
        criterion(predicted, labels).backward()
        if step % every != every - 1:
            continue
        with HOST:
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    mark("end")
