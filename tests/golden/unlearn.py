"""MUDMAN in PyTorch, one loop after the other, the way docs/method.md 2 orders the operations.

The base b, the adversary a and the accumulator m are plain tensors of the state's dtype: float64, or bfloat16
for `model.state_dtype=bfloat16`. The model itself always computes in float64. In a bfloat16 state every line
below rounds its result to bfloat16, once per operation, in exactly this order for every tensor of W:

    start     b = bf16(weight);  m = 0
    fork      a = b
    gradient  g = bf16(float32(gradient))                     each of the three gradients of a loop
    retain    m = m * mu;  t = g * (1 - mu);  m = m + t
              t = alpha_r * m;  b = b - t
    adversary t = alpha_adv * g;  a = a - t
    decay     t = b * (1 - d);  a = a * d;  a = a + t         left out when d = 1
    norm      n_i = norm(g_i) per tensor;  q_i = n_i * n_i;  s = q_0 + q_1 + ... in model order;  n = sqrt(s)
    momentum  f = f * beta;  t = g * (1 - beta);  f = f + t;  g = f     left out when beta = 0
    mask      g = g * (sign(m) == sign(g))
    discard   g = g * c where sign(b) != sign(g)              left out when c = 1
    scale     c = 1 / n;  c = c * sqrt(N_W);  g = g * c       c * sqrt(N_W) for rate_scale=study only
    unlearn   t = alpha_u * g;  b = b - t
    update    t = (c * alpha_u) * g;  a = a - t               left out when c = 0

An operation on bfloat16 values is computed in float32 (the norm accumulates in float32 at least) and rounded
to nearest even. mu, 1 - mu, d, 1 - d, beta, 1 - beta, both c, c * alpha_u, sqrt(N_W) and the rates are float64 in the configuration, 1 - mu and
1 - d are formed in float64, and each enters its operation rounded to float32, never to bfloat16. c is a
bfloat16 value; PyTorch divides a Python number by a tensor as reciprocal times number, two roundings.
"""
import copy
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

import oracle
from adapters import Adversary, Base
from rows import valid_of

Tensors = list[Tensor]

DEFAULTS = {
    "model.state_dtype": "float32",
    "unlearn.clip_at": 0.0,
    "unlearn.npo_beta": 0.1,
    "unlearn.simnpo_gamma": 0.0,
    "unlearn.adv_decay": 1.0,
    "unlearn.forget_momentum": 0.0,
    "unlearn.discard_growing_weights": 1.0,
    "unlearn.adv_update": 0.0,
    "unlearn.lora_rank": 0,
    "unlearn.adv_lora_rank": 0,
    "unlearn.adv_lora_count": 1,
    "unlearn.train_adversary": True,
    "unlearn.use_masking": True,
    "unlearn.normalization": "global_pre_mask",
    "unlearn.rate_scale": "listing",
    "unlearn.graph": "listing",
    "seed": 42,
    "unlearn.rep_eng_retain_lr": 0.0,
    "unlearn.square_norm": False,
    "unlearn.retain_cross_entropy": True,
    "unlearn.rmu_layer": None,
    "unlearn.rmu_coefficient": 6.5,
}


@dataclass
class Trace:
    """What a run leaves: metrics a loop, the final state, and how near it came to a discontinuity."""

    metrics: dict[str, list[float]] = field(default_factory=dict)
    base: dict[str, Tensor] = field(default_factory=dict)
    adversary: dict[str, Tensor] = field(default_factory=dict)
    retain_acc: dict[str, Tensor] = field(default_factory=dict)
    forget_acc: dict[str, Tensor] = field(default_factory=dict)
    gradients: list[dict[str, Tensors]] = field(default_factory=list)
    mask_margin: float = 1.0
    clip_margin: float = 1.0

    def add(self, **values: float) -> None:
        for key, value in values.items():
            self.metrics.setdefault(key, []).append(float(value))


def batch(rows: Tensor, index: int, size: int) -> Tensor:
    """Rows i*B ... i*B+B-1, wrapping at the end."""
    return rows[[(index * size + k) % len(rows) for k in range(size)]]


def relative_margin(values: Tensors) -> float:
    """The smallest nonzero magnitude over the largest, by tensor: how near a sign is to flipping."""
    return min(float(v.abs()[v != 0].min() / v.abs().max()) for v in values if v.any())


class Unlearning:
    """State and hyperparameters of one run; `loop` is Algorithm 1 once."""

    def __init__(self, model: nn.Module, config: dict):
        self.model = model
        self.frozen = copy.deepcopy(model).requires_grad_(False)
        self.config = DEFAULTS | config
        named = oracle.targets(model, self.config["unlearn.target_modules"])
        self.names, self.params = list(named), list(named.values())
        # Only W gets gradients, in every pass.
        for p in model.parameters():
            p.requires_grad_(False)
        layers = {f"{name}.weight": layer for name, layer in model.named_modules()}
        self.adapters: Base | None = None
        if self["lora_rank"]:
            self.adapters = Base({name: layers[name] for name in self.names}, self["lora_rank"], self["seed"])
            named = self.adapters.parameters()
            self.names, self.params = list(named), list(named.values())
        for p in self.params:
            p.requires_grad_(True)
        self.state_dtype = torch.bfloat16 if self["model.state_dtype"] == "bfloat16" else self.params[0].dtype
        self.b = [p.detach().to(self.state_dtype, copy=True) for p in self.params]
        self.m = [torch.zeros_like(b) for b in self.b]
        self.f = [torch.zeros_like(b) for b in self.b] if self["forget_momentum"] else []
        self.a: Tensors = []
        self.adversary: Adversary | None = None
        if self["adv_lora_rank"]:
            self.adversary = Adversary(
                {name: layers[name] for name in self.names},
                *(self[key] for key in ("adv_lora_rank", "adv_lora_count", "fork_every_n_loops", "seed")),
            )
        self.start = [p.detach().clone() for p in self.params]
        self.reference: Tensor | None = None
        self.trace = Trace()

    def __getitem__(self, key: str):
        key = key if key in self.config else f"unlearn.{key}"
        return self.config[key]

    def use(self, values: Tensors) -> None:
        """Points the model at a fresh copy of `values`: no graph made before can see it."""
        for p, value in zip(self.params, values):
            p.data = value.to(p.dtype, copy=True)

    def overwrite(self, values: Tensors) -> None:
        """Changes the model's weights in place, behind autograd's back.

        p.data shares p's storage but not its version counter. A graph made before keeps its activations and
        propagates through the *new* weights: what `p.adv_data -= ...` does in the paper's Listing 1.
        """
        for p, value in zip(self.params, values):
            p.data.copy_(value)

    def grad(self, loss: Tensor, keep_graph: bool = False) -> Tensors:
        raw = torch.autograd.grad(loss, self.params, retain_graph=keep_graph, materialize_grads=True)
        if self.state_dtype != torch.bfloat16:
            return list(raw)
        return [g.to(torch.float32).to(torch.bfloat16) for g in raw]

    def frozen_states(self, tokens: Tensor) -> tuple[Tensor, ...]:
        return oracle.outputs_of(self.frozen, tokens).states

    def unlearning_loss(self, out: oracle.Outputs, tokens: Tensor) -> Tensor:
        name, clip, logits = self["unlearning_loss_fn"], self["clip_at"], out.logits
        if name == "circuit_breaker":
            return oracle.circuit_breaker(out.states, self.frozen_states(tokens), valid_of(tokens))
        if name == "stream_activation":
            return oracle.stream_activation(out.states, valid_of(tokens))
        if name == "rmu":
            layer = len(out.states) // 2 if self["rmu_layer"] is None else self["rmu_layer"]
            return oracle.rmu(out.states[layer], self["rmu_coefficient"], self["seed"], valid_of(tokens))
        if name == "correct_logit_minus_avg":
            gap = (oracle.correct_logit_values(logits.detach(), tokens) - clip).abs()
            self.trace.clip_margin = min(self.trace.clip_margin, float(gap.min()))
        if name == "npo":
            return oracle.npo(logits, tokens, self["npo_beta"], self.reference)
        if name == "simnpo":
            return oracle.simnpo(logits, tokens, self["npo_beta"], self["simnpo_gamma"])
        return oracle.loss_by_name(name, logits, tokens, clip)

    def retain_loss(self, tokens: Tensor) -> Tensor:
        if not self["rep_eng_retain_lr"]:
            return oracle.cross_entropy(oracle.logits_of(self.model, tokens), tokens)
        out = oracle.outputs_of(self.model, tokens)
        frozen = self.frozen_states(tokens)
        distance = oracle.distance_loss(out.states, frozen, self["square_norm"], valid_of(tokens))
        loss = self["rep_eng_retain_lr"] * distance
        return loss + oracle.cross_entropy(out.logits, tokens) if self["retain_cross_entropy"] else loss

    def retain_step(self, tokens: Tensor) -> tuple[Tensor, Tensors]:
        self.use(self.b)
        loss = self.retain_loss(tokens)
        grads = self.grad(loss)
        mu, rate = self["retain_momentum"], self["retaining_rate"]
        for b, m, g in zip(self.b, self.m, grads):
            m.mul_(mu)
            m.add_(g * (1 - mu))
            b.sub_(rate * m)
        return loss.detach(), grads

    def adversary_step(self, grads: Tensors) -> None:
        decay = self["adv_decay"]
        for a, b, g in zip(self.a, self.b, grads):
            a.sub_(self["adv_lr"] * g)
            if decay != 1:
                a.mul_(decay).add_(b * (1 - decay))

    def forget_gradients(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensors, Tensors]:
        """The adversary's step and the unlearning gradient: (CE, L_u, g of CE, g_u)."""
        if self["unlearning_loss_fn"] == "npo":
            self.use(self.start)
            with torch.no_grad():
                self.reference = oracle.sequence_log_probability(oracle.logits_of(self.model, tokens), tokens)
        if self.adversary:
            return self.forget_gradients_with_adapters(tokens)
        self.use(self.a if self["train_adversary"] else self.b)
        out = oracle.outputs_of(self.model, tokens)
        ce = oracle.cross_entropy(out.logits, tokens)
        if not self["train_adversary"]:
            loss = self.unlearning_loss(out, tokens)
            return ce.detach(), loss.detach(), [], self.grad(loss)
        adv_grads = self.grad(ce, keep_graph=True)
        self.adversary_step(adv_grads)
        if self["graph"] == "reuse":
            assert self["unlearning_loss_fn"] == "neg_cross_entropy"
            return ce.detach(), -ce.detach(), adv_grads, [-g for g in adv_grads]
        if self["graph"] == "fresh":
            self.use(self.a)
            out = oracle.outputs_of(self.model, tokens)
        else:
            self.overwrite(self.a)
        loss = self.unlearning_loss(out, tokens)
        return ce.detach(), loss.detach(), adv_grads, self.grad(loss)

    def forget_gradients_with_adapters(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensors, Tensors]:
        """The adversary is b with adapters beside it: they step, and the unlearning gradient is taken of b."""
        self.use(self.b)
        self.adversary.attach()
        out = oracle.outputs_of(self.model, tokens)
        ce = oracle.cross_entropy(out.logits, tokens)
        stepped = self.adversary.parameters()
        adv_grads = torch.autograd.grad(ce, stepped + self.params, retain_graph=True)
        self.adversary.step(adv_grads[: len(stepped)], self["adv_lr"], self["adv_decay"])
        if self["graph"] == "reuse":
            loss, grads = -ce, [-g for g in adv_grads[len(stepped) :]]
        else:
            out = oracle.outputs_of(self.model, tokens) if self["graph"] == "fresh" else out
            loss = self.unlearning_loss(out, tokens)
            grads = self.grad(loss)
        self.adversary.detach()
        return ce.detach(), loss.detach(), [], grads

    def accumulate(self, grads: Tensors) -> Tensors:
        """With forget_momentum the accumulator takes the gradient's place."""
        beta = self["forget_momentum"]
        for f, g in zip(self.f, grads):
            f.mul_(beta)
            f.add_(g * (1 - beta))
        return [f.clone() for f in self.f] or grads

    def discard(self, grads: Tensors) -> None:
        """In place: steps that would make a weight larger count less."""
        c = self["discard_growing_weights"]
        if c == 1:
            return
        self.trace.mask_margin = min(self.trace.mask_margin, relative_margin(self.b))
        for b, g in zip(self.b, grads):
            grows = b.sign() != g.sign()
            g[grows] = g[grows] * c

    def masks(self, grads: Tensors) -> Tensors:
        if not self["use_masking"]:
            return [torch.ones_like(g, dtype=torch.bool) for g in grads]
        margin = min(relative_margin(self.m), relative_margin(grads))
        self.trace.mask_margin = min(self.trace.mask_margin, margin)
        return [m.sign() == g.sign() for m, g in zip(self.m, grads)]

    def scale(self, n: Tensor) -> Tensor:
        size = sum(b.numel() for b in self.b)
        return size**0.5 / n if self["rate_scale"] == "study" else 1 / n

    def normalize(self, grads: Tensors, n: Tensor) -> None:
        """Scales the masked gradient in place; n is the norm of the raw one."""
        kind = self["normalization"]
        if kind == "per_parameter":
            for g in grads:
                g.mul_(1 / g.norm())
        elif kind != "none":
            scale = self.scale(global_norm(grads) if kind == "global_post_mask" else n)
            for g in grads:
                g.mul_(scale)

    def loop(self, t: int, retain: Tensor, forget: Tensor) -> None:
        if self.adversary:
            self.adversary.turn(t)
        elif self["train_adversary"] and t % self["fork_every_n_loops"] == 0:
            self.a = [b.clone() for b in self.b]
        retain_loss, retain_grads = self.retain_step(retain)
        adversary_loss, loss, adv_grads, raw = self.forget_gradients(forget)
        n = global_norm(raw)
        compared = self.accumulate(raw)
        masks = self.masks(compared)
        kept_inputs = {"retain": retain_grads, "adversary": adv_grads, "unlearning": raw}
        signs = {"compared": compared, "accumulator": [m.clone() for m in self.m]}
        if self["discard_growing_weights"] != 1:
            signs["base"] = [b.clone() for b in self.b]
        self.trace.gradients.append(kept_inputs | signs)
        grads = [g.clone().mul_(mask) for g, mask in zip(compared, masks)]
        self.discard(grads)
        self.normalize(grads, n)
        for b, g in zip(self.b, grads):
            b.sub_(self["unlearning_rate"] * g)
        if self["adv_update"]:
            for a, g in zip(self.a, grads):
                a.sub_(self["adv_update"] * self["unlearning_rate"] * g)
        kept = sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)
        self.trace.add(
            retain_loss=retain_loss,
            adversary_loss=adversary_loss,
            unlearning_loss=loss,
            grad_norm=n,
            mask_fraction=kept,
        )

    def finish(self) -> Trace:
        self.trace.base = dict(zip(self.names, self.b))
        self.trace.adversary = self.adversary.state() if self.adversary else dict(zip(self.names, self.a))
        self.trace.retain_acc = dict(zip(self.names, self.m))
        self.trace.forget_acc = dict(zip(self.names, self.f))
        return self.trace


def global_norm(grads: Tensors) -> Tensor:
    return sum(g.norm() ** 2 for g in grads) ** 0.5


def run_on(model: nn.Module, config: dict, retain: Tensor, forget: Tensor) -> Unlearning:
    """All loops; the model ends with the weights of b."""
    run = Unlearning(model, config)
    size = config["data.batch_size"]
    for t in range(config["unlearn.loops"]):
        run.loop(t, batch(retain, t, size), batch(forget, t, size))
    run.use(run.b)
    return run


def run(model: nn.Module, config: dict, retain: Tensor, forget: Tensor) -> Trace:
    return run_on(model, config, retain, forget).finish()


def listing_gradient_by_substitution(model, params: dict, old: Tensors, new: Tensors, loss_of) -> Tensors:
    """The `listing` gradient from its definition instead of from autograd's saved storage.

    Every target layer computes with the old weights but differentiates with the new: x W_new plus the constant
    x W_old - x W_new. `params` maps W's names to parameters, `loss_of()` runs the model.
    """
    leaves = [n.clone().requires_grad_(True) for n in new]
    by_layer = {id(p): (o, leaf) for p, o, leaf in zip(params.values(), old, leaves)}
    changed = [layer for layer in model.modules() if id(getattr(layer, "weight", None)) in by_layer]
    for layer in changed:
        o, leaf = by_layer[id(layer.weight)]
        layer.forward = _substituted(layer, o, leaf)
    try:
        return list(torch.autograd.grad(loss_of(), leaves, materialize_grads=True))
    finally:
        for layer in changed:
            del layer.forward


def _substituted(layer: nn.Linear, old: Tensor, new: Tensor):
    def forward(x: Tensor) -> Tensor:
        y = nn.functional.linear(x, new, layer.bias)
        return y + (nn.functional.linear(x, old, layer.bias) - y).detach()

    return forward
