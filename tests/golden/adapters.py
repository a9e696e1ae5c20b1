"""Low-rank adapters, written out: what relearning trains, and what an adversary or the base may be made of."""
import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from oracle import splitmix64


def fnv1a(name: str) -> int:
    value = 0xCBF29CE484222325
    for byte in name.encode():
        value = (value ^ byte) * 0x100000001B3 % 2**64
    return value


def seed_of(seed: int, name: str) -> int:
    return splitmix64(seed, fnv1a(name))


def first_adapter(seed: int, name: str, rank: int, columns: int) -> Tensor:
    """A at the start: uniform within 1/sqrt(columns) of 0, from seed, name and place, rounded to float32."""
    own = seed_of(seed, name)
    uniform = [((splitmix64(own, i) >> 11) + 0.5) * 2.0**-53 for i in range(rank * columns)]
    values = (2 * np.array(uniform) - 1) / math.sqrt(columns)
    return torch.from_numpy(values.astype(np.float32)).reshape(rank, columns)


class Lora:
    """An adapter beside a linear layer: y = W0 x + bias + alpha/rank B A x."""

    def __init__(self, name: str, layer: nn.Linear, rank: int, alpha: float, seed: int):
        self.name, self.layer, self.scale = name, layer, alpha / rank
        rows, columns = layer.weight.shape
        dtype = layer.weight.dtype
        self.a = first_adapter(seed, name, rank, columns).to(dtype).requires_grad_(True)
        self.b = torch.zeros(rows, rank, dtype=dtype, requires_grad=True)
        self.attach()

    def attach(self) -> None:
        self.layer.forward = self.forward

    def detach(self) -> None:
        if "forward" in vars(self.layer):
            del self.layer.forward

    def forward(self, x: Tensor) -> Tensor:
        aside = F.linear(F.linear(x, self.a), self.b)
        return F.linear(x, self.layer.weight, self.layer.bias) + self.scale * aside

    def merged(self) -> Tensor:
        return self.layer.weight.detach() + self.scale * (self.b @ self.a).detach()


UNLEARNING_ALPHA = 8.0


class Base:
    """One set beside the layers of W, in place of W: all A, then all B, by their names."""

    def __init__(self, layers: dict[str, nn.Linear], rank: int, seed: int):
        own = seed_of(seed, "base")
        self.adapters = [Lora(name, layer, rank, UNLEARNING_ALPHA, own) for name, layer in layers.items()]

    def parameters(self) -> dict[str, Tensor]:
        both = {"A": [adapter.a for adapter in self.adapters], "B": [adapter.b for adapter in self.adapters]}
        return {
            f"{adapter.name}.lora_{matrix}": value
            for matrix, values in both.items()
            for adapter, value in zip(self.adapters, values, strict=True)
        }

    def merged(self) -> dict[str, Tensor]:
        return {adapter.name: adapter.merged() for adapter in self.adapters}


class Adversary:
    """Sets of adapters beside the layers of W; at loop t it is set t mod `count`, and in turn one begins anew.

    A set begins with a number: 0, 1, ... for the first beginnings, then on.
    """

    def __init__(self, layers: dict[str, nn.Linear], rank: int, count: int, fork_every: int, seed: int):
        self.layers, self.rank, self.seed = layers, rank, seed_of(seed, "adversary")
        self.every = fork_every // 6 * 6 // count
        self.sets = [self.begin(i) for i in range(count)]
        self.now = self.sets[0]

    def begin(self, number: int) -> list[Lora]:
        seed = splitmix64(self.seed, number)
        adapters = [Lora(name, layer, self.rank, UNLEARNING_ALPHA, seed) for name, layer in self.layers.items()]
        for adapter in adapters:
            adapter.detach()
        return adapters

    def turn(self, t: int) -> None:
        count = len(self.sets)
        if t % self.every == 0:
            self.sets[t // self.every % count] = self.begin(count + t // self.every)
        self.now = self.sets[t % count]

    def attach(self) -> None:
        for adapter in self.now:
            adapter.attach()

    def detach(self) -> None:
        for adapter in self.now:
            adapter.detach()

    def parameters(self) -> list[Tensor]:
        return [p for adapter in self.now for p in (adapter.a, adapter.b)]

    def merged(self) -> list[Tensor]:
        return [adapter.merged() for adapter in self.now]

    def step(self, grads: list[Tensor], rate: float, decay: float) -> None:
        """Behind autograd's back: a graph made before propagates through the new adapters."""
        for p, g in zip(self.parameters(), grads, strict=True):
            p.data.sub_(rate * g)
            p.data.mul_(decay)

    def state(self) -> dict[str, Tensor]:
        return {
            f"{adapter.name}.lora_{matrix}.{i}": value.detach()
            for i, adapters in enumerate(self.sets)
            for adapter in adapters
            for matrix, value in (("A", adapter.a), ("B", adapter.b))
        }
