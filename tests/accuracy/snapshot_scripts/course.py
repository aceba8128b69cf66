"""The scripts that ran the course's decoder: first the edition of 2026, then that of 2025."""

from __future__ import annotations

import torch
from torch.nn import functional

from tests.accuracy.snapshot_models.course import (
    BasicsLM,
    NamedSwiGLU,
    Sizes,
    SwiGLU,
    gather_einx_03,
    gather_einx_04,
)
from tests.accuracy.snapshot_optimizers import BasicsAdamW, cross_entropy
from tests.accuracy.snapshot_scripts.stage import HOST, Mark, autocast, flat_loss, gradients, tokens


def wedsonlin_inference(sizes: Sizes, mark: Mark) -> None:
    model = BasicsLM(sizes)
    warm_ups = tokens(5, 4, sizes.context)
    inputs = tokens(1, 4, sizes.context)
    with torch.inference_mode():
        model(warm_ups[0])
        mark("start")
        model(inputs[0])
    mark("end")


def wedsonlin_training(sizes: Sizes, bf16: bool, mark: Mark) -> None:
    model = BasicsLM(sizes)
    optimizer = BasicsAdamW(model.parameters(), decay_last=False)
    warm_inputs, inputs = tokens(5, 4, sizes.context), tokens(1, 4, sizes.context)
    warm_targets, targets = tokens(5, 4, sizes.context), tokens(1, 4, sizes.context)
    with autocast(bf16):
        output = model(warm_inputs[0])
        loss = cross_entropy(output, warm_targets[0])
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    del output, loss
    mark("start")
    with autocast(bf16):
        output = model(inputs[0])
        loss = cross_entropy(output, targets[0])
    loss.backward()
    optimizer.step()
    mark("end")


def bolongcheng_forward(sizes: Sizes, grad: bool, mark: Mark) -> None:
    model = BasicsLM(sizes)
    x = tokens(4, sizes.context)

    def step() -> None:
        with gradients(grad):
            _ = model(x)

    step()
    mark("start")
    step()
    mark("end")


def linyun_forward(sizes: Sizes, grad: bool, bf16: bool, mark: Mark) -> None:
    model = BasicsLM(sizes)
    inputs = tokens(4, sizes.context)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with gradients(grad), autocast(bf16):
            logits = model(inputs)  # noqa: F841

    step()
    mark("start")
    step()
    mark("end")


def linyun_training(sizes: Sizes, bf16: bool, mark: Mark) -> None:
    model = BasicsLM(sizes)
    inputs = tokens(4, sizes.context)
    targets = tokens(4, sizes.context)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast(bf16):
            logits = model(inputs)
        loss = functional.cross_entropy(logits.float().reshape(-1, sizes.vocab), targets.reshape(-1))
        loss.backward()
        with HOST:
            optimizer.step()

    step()
    mark("start")
    step()
    mark("end")


def okazaki_forward(sizes: Sizes, mark: Mark) -> None:
    model = BasicsLM(sizes)
    inputs = tokens(4, sizes.context)

    def step() -> None:
        logits = model(inputs)  # noqa: F841

    with torch.inference_mode():
        step()
    mark("start")
    with torch.inference_mode():
        step()
    mark("end")


def okazaki_training(sizes: Sizes, mark: Mark) -> None:
    model = BasicsLM(sizes)
    inputs = tokens(4, sizes.context)
    targets = tokens(4, sizes.context)
    optimizer = BasicsAdamW(model.parameters(), decay_last=False)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        logits = model(inputs)
        loss = cross_entropy(logits, targets)
        loss.backward()
        optimizer.step()

    step()
    mark("start")
    step()
    mark("end")


def yyin_forward(sizes: Sizes, bf16: bool, mark: Mark) -> None:
    model = BasicsLM(sizes, gather_einx_03)
    inputs = tokens(4, sizes.context)

    def run() -> None:
        with autocast(bf16):
            output = model(inputs)  # noqa: F841

    run()
    mark("start")
    model.zero_grad()
    run()
    mark("end")


def hyperion_forward(sizes: Sizes, grad: bool, bf16: bool, mark: Mark) -> None:
    """Logits and loss of the warm-up, and with gradients its whole graph, live until the recorded step replaces them."""
    model = BasicsLM(sizes, gather_einx_03)
    x, y = tokens(1, sizes.context), tokens(1, sizes.context)
    context = autocast(bf16)
    for recorded in (False, True):
        if recorded:
            mark("start")
        with context, gradients(grad):
            if grad:
                model.zero_grad()
            logits = model(x)
            loss = functional.cross_entropy(logits.view(-1, logits.size(-1)), y.view(-1))  # noqa: F841
    mark("end")


def sidsoc_forward(sizes: Sizes, mark: Mark) -> None:
    """The graph of the warm-up's logits is alive while the next one grows."""
    model = BasicsLM(sizes, gather_einx_03)
    inputs = tokens(4, sizes.context)
    logits = model(inputs)
    mark("start")
    logits = model(inputs)  # noqa: F841
    mark("end")


def sidsoc_training(sizes: Sizes, mark: Mark) -> None:
    model = BasicsLM(sizes, gather_einx_03)
    optimizer = BasicsAdamW(model.parameters(), decay_last=True)
    inputs, targets = tokens(4, sizes.context), tokens(4, sizes.context)
    logits = model(inputs)
    mark("start")
    logits = model(inputs)
    loss = cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1))
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    mark("end")


def aimetrics_forward(sizes: Sizes, bf16: bool, mark: Mark) -> None:
    """The warm-up's logits (`_`) live until the recorded ones take their name."""
    model = BasicsLM(sizes, gather_einx_04, NamedSwiGLU)
    x = tokens(4, sizes.context)
    for recorded in (False, True):
        if recorded:
            mark("start")
        model.zero_grad(set_to_none=True)
        with autocast(bf16), torch.no_grad():
            _ = model(x)
    mark("end")


def aimetrics_training(sizes: Sizes, bf16: bool, feed_forward: type[SwiGLU], mark: Mark) -> None:
    """Logits and loss of the warm-up live until the recorded step's take their names."""
    model = BasicsLM(sizes, gather_einx_04, feed_forward)
    x, y = tokens(4, sizes.context), tokens(4, sizes.context)
    optimizer = torch.optim.AdamW(model.parameters())
    for recorded in (False, True):
        if recorded:
            mark("start")
        model.zero_grad(set_to_none=True)
        with autocast(bf16):
            logits = model(x)
            loss = flat_loss(logits, y)
        loss.backward()
        with HOST:
            optimizer.step()
    mark("end")
