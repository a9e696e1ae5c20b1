"""The two kinds of training around unlearning: relearning (the attack) and pre-training."""
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

import oracle
from adapters import Base, Lora
from unlearn import batch


def train_all(model: nn.Module) -> dict[str, nn.Parameter]:
    params = oracle.parameters(model)
    for p in params.values():
        p.requires_grad_(True)
    return params


def adapt(model: nn.Module, config: dict) -> dict[str, Lora]:
    """Adapters on every linear layer but the head, by the name of its weight."""
    for p in model.parameters():
        p.requires_grad_(False)
    head = model.get_output_embeddings()
    return {
        f"{name}.weight": Lora(f"{name}.weight", layer, config["relearn.lora_rank"], 16, config["seed"])
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and layer is not head
    }


class Sgd:
    """Plain: p - rate g, each operation rounded."""

    def __init__(self, params: list[Tensor], rate: float):
        self.params, self.rate = params, rate

    def zero_grad(self) -> None:
        for p in self.params:
            p.grad = None

    def step(self) -> None:
        for p in self.params:
            p.data.sub_(self.rate * p.grad)


def adapters_beside(model: nn.Module, config: dict) -> Base:
    """As they begin in unlearning."""
    layers = {f"{name}.weight": layer for name, layer in model.named_modules()}
    names = oracle.targets(model, config["unlearn.target_modules"])
    return Base({name: layers[name] for name in names}, config["unlearn.lora_rank"], config.get("seed", 42))


def attack_of(model: nn.Module, config: dict, stay: Base | None) -> tuple[Sgd | torch.optim.AdamW, Callable[[], dict[str, Tensor]]]:
    """The optimizer of what is trained, and a function that gives the weights it changed."""
    if config.get("relearn.lora_rank", 0):
        adapters = adapt(model, config)
        trained = [tensor for adapter in adapters.values() for tensor in (adapter.a, adapter.b)]
        end = lambda: {name: adapter.merged() for name, adapter in adapters.items()}  # noqa: E731
    else:
        params = train_all(model)
        beside = stay.parameters() if stay else {}
        trained = [*params.values(), *beside.values()]
        end = lambda: params | (stay.merged() if stay else {})  # noqa: E731
    if config.get("relearn.optimizer", "sgd") == "adamw":
        return torch.optim.AdamW(
            trained, lr=config["relearn.lr"], betas=(0.9, 0.999), eps=1e-8, weight_decay=0
        ), end
    return Sgd(trained, config["relearn.lr"]), end


def attack_step(model: nn.Module, optimizer: Sgd | torch.optim.AdamW, tokens: Tensor) -> float:
    """The loss is the one before the step."""
    optimizer.zero_grad()
    loss = oracle.cross_entropy(oracle.logits_of(model, tokens), tokens)
    loss.backward()
    optimizer.step()
    return loss.item()


def relearn(model: nn.Module, config: dict, forget: Tensor, retain: Tensor, stay: Base | None = None):
    """Batches are of the rows behind those that evaluation uses; adapters that `stay` are trained, too.

    Returns (forget losses, retain losses, changed weights).
    """
    optimizer, end = attack_of(model, config, stay)
    size, with_retain = config["data.batch_size"], config["relearn.with_retain"]
    steps = config["relearn.passes"] // (4 if with_retain else 2)
    evaluated = config["evaluate.batches"] * size
    forget, retain = forget[evaluated:], retain[evaluated:]
    forget_losses, retain_losses = [], []
    for step in range(steps):
        forget_losses.append(attack_step(model, optimizer, batch(forget, step, size)))
        if with_retain:
            retain_losses.append(attack_step(model, optimizer, batch(retain, step, size)))
    return forget_losses, retain_losses, end()


def learning_rate(config: dict, step: int) -> float:
    peak, warmup = config["pretrain.lr"], config["pretrain.warmup"]
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / (config["pretrain.steps"] - warmup)
    ratio = config["pretrain.min_lr_ratio"]
    return peak * (ratio + (1 - ratio) * 0.5 * (1 + math.cos(math.pi * done)))


def optimizer_of(config: dict, params: dict[str, nn.Parameter]) -> torch.optim.AdamW:
    """Matrices decay, embeddings included; norms and biases do not."""
    groups = [
        {"params": [p for p in params.values() if p.dim() == 2], "weight_decay": config["pretrain.weight_decay"]},
        {"params": [p for p in params.values() if p.dim() != 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config["pretrain.lr"], betas=tuple(config["pretrain.betas"]), eps=1e-8)


def pretrain(model: nn.Module, config: dict, retain: Tensor, forget: Tensor):
    """A step's batch: batch_size rows of retain, then batch_size of forget; the loss is the mean over all.

    clip_grad_norm_ multiplies by clip / (norm + 1e-6) where that is below 1.
    Returns (losses, gradient norms before clipping, parameters).
    """
    params = train_all(model)
    optimizer = optimizer_of(config, params)
    size = config["data.batch_size"]
    losses, norms = [], []
    for step in range(config["pretrain.steps"]):
        tokens = torch.cat((batch(retain, step, size), batch(forget, step, size)))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step)
        optimizer.zero_grad()
        loss = oracle.cross_entropy(oracle.logits_of(model, tokens), tokens)
        loss.backward()
        norms.append(float(nn.utils.clip_grad_norm_(params.values(), config["pretrain.clip"])))
        optimizer.step()
        losses.append(loss.item())
    return losses, norms, params
