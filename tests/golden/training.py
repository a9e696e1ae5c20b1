"""The two kinds of training around unlearning: relearning (the attack) and pre-training."""
import math

import torch
from torch import Tensor, nn

import oracle
from unlearn import batch


def train_all(model: nn.Module) -> dict[str, nn.Parameter]:
    params = oracle.parameters(model)
    for p in params.values():
        p.requires_grad_(True)
    return params


def sgd_step(model: nn.Module, params: dict[str, nn.Parameter], tokens: Tensor, rate: float) -> float:
    """Plain SGD on every parameter; the loss is the one before the step."""
    loss = oracle.cross_entropy(oracle.logits_of(model, tokens), tokens)
    for p, g in zip(params.values(), torch.autograd.grad(loss, list(params.values()))):
        p.data.sub_(rate * g)
    return loss.item()


def relearn(model: nn.Module, config: dict, forget: Tensor, retain: Tensor):
    """Batches start behind the ones that evaluation uses. Returns (forget losses, retain losses, parameters)."""
    params = train_all(model)
    size, rate = config["data.batch_size"], config["relearn.lr"]
    with_retain = config["relearn.with_retain"]
    steps = config["relearn.passes"] // (4 if with_retain else 2)
    first = config["evaluate.batches"]
    forget_losses, retain_losses = [], []
    for step in range(first, first + steps):
        forget_losses.append(sgd_step(model, params, batch(forget, step, size), rate))
        if with_retain:
            retain_losses.append(sgd_step(model, params, batch(retain, step, size), rate))
    return forget_losses, retain_losses, params


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
