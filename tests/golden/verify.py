"""Checks of the traces themselves, made while they are generated.

- the three graph modes really differ, and `listing` is what its definition says (a second derivation);
- float32 arithmetic can follow: no mask sign is near enough to zero for rounding to flip it;
- the bfloat16 traces follow from their stored gradients by the documented order, replayed in numpy.
"""
import numpy as np
import torch

import oracle
import unlearn
from unlearn import Trace

# A sign counts as safe when its value is this many times the rounding error of its tensor (root mean square).
SAFE = 4.0
MIN_MASK_MARGIN = 1e-6
MIN_CLIP_MARGIN = 1e-4


def rounding_safety(exact: Trace, rounded: Trace) -> float:
    """Smallest |value| over rms rounding error, for all whose sign has mattered: what the mask has compared, and
    the base where growing weights are discarded."""
    worst = float("inf")
    for loop64, loop32 in zip(exact.gradients, rounded.gradients):
        for kind in {"compared", "accumulator", "base"} & loop64.keys():
            for v64, v32 in zip(loop64[kind], loop32[kind]):
                error = (v32.double() - v64.double()).pow(2).mean().sqrt()
                if v64.any():
                    worst = min(worst, float(v64.abs()[v64 != 0].min() / error))
    return worst


def weaknesses(config: dict, exact: Trace, rounded: Trace) -> list[str]:
    """Why float32 might not follow this trace; empty if it does."""
    found = []
    if exact.mask_margin < MIN_MASK_MARGIN:
        found.append(f"mask margin {exact.mask_margin:.1e}")
    if exact.clip_margin < MIN_CLIP_MARGIN:
        found.append(f"clip margin {exact.clip_margin:.1e}")
    masked = config.get("unlearn.use_masking", True)
    if masked and config.get("model.state_dtype") != "bfloat16":
        safety = rounding_safety(exact, rounded)
        if safety < SAFE:
            found.append(f"rounding safety {safety:.1f}")
    if exact.metrics["mask_fraction"] != rounded.metrics["mask_fraction"]:
        found.append("masks differ in float32")
    return found


def largest_difference(one: dict, other: dict) -> float:
    return max(float((one[k].double() - other[k].double()).abs().max()) for k in one)


def check_graph_modes_differ(traces: dict[str, Trace]) -> None:
    names = [name for name in ("listing", "fresh", "reuse") if name in traces]
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            gap = largest_difference(traces[one].base, traces[other].base)
            assert gap > 1e-3, f"{one} and {other} differ by only {gap}"


def check_listing(model, config: dict, tokens: torch.Tensor) -> None:
    """Autograd's retained graph against the substitution derivation, for one forget batch."""
    run = unlearn.Unlearning(model, config | {"unlearn.graph": "listing"})
    run.a = [b.clone() for b in run.b]
    old = run.b
    if run.adversary:  # with a B that is not zero
        run.forget_gradients(tokens)
        run.use(run.b)
        old = run.adversary.merged()
    *_, retained = run.forget_gradients(tokens)
    run.use(run.b)
    new = run.adversary.merged() if run.adversary else run.a

    def loss_of():
        return run.unlearning_loss(oracle.outputs_of(model, tokens), tokens)

    params = dict(zip(run.names, run.params))
    substituted = unlearn.listing_gradient_by_substitution(model, params, old, new, loss_of)
    for one, other in zip(retained, substituted):
        assert torch.allclose(one, other, rtol=1e-11, atol=1e-14)


def check_differences(model, config: dict, tokens: torch.Tensor, step: float = 1e-6) -> None:
    """Both losses of a run, of weights moved off the initial ones, against central differences along a direction."""
    run = unlearn.Unlearning(model, config)
    rng = torch.Generator().manual_seed(0)

    def moved(values, scale):
        rng.manual_seed(1)
        return [v + scale * torch.randn(v.shape, generator=rng, dtype=v.dtype) for v in values]

    start = [0.7 * b.double() for b in run.b]
    if run.adapters:  # B would be zero, and with it both gradients
        start = moved(start, 0.1)
    for loss_of in (run.retain_loss, lambda t: run.unlearning_loss(oracle.outputs_of(model, t), t)):
        run.use(start)
        grads = torch.autograd.grad(loss_of(tokens), run.params, materialize_grads=True)
        slope = sum(float((g * (d - s)).sum()) for g, d, s in zip(grads, moved(start, 1.0), start))
        ends = []
        for scale in (step, -step):
            run.use(moved(start, scale))
            with torch.no_grad():
                ends.append(float(loss_of(tokens)))
        numeric = (ends[0] - ends[1]) / (2 * step)
        assert abs(numeric - slope) < 1e-6 * abs(slope), (numeric, slope)
    run.use(run.b)


def bf16(x) -> np.ndarray:
    """Rounds float32 to the nearest bfloat16, ties to even, kept as float32."""
    bits = np.asarray(x, np.float32).view(np.uint32)
    bits = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return (bits & np.uint32(0xFFFF0000)).view(np.float32)


class Bfloat16Replay:
    """The order of operations in unlearn.py's heading, one rounding a line, in numpy."""

    def __init__(self, config: dict, weights: list[np.ndarray]):
        self.c = {key.removeprefix("unlearn."): value for key, value in (unlearn.DEFAULTS | config).items()}
        self.b = [bf16(w) for w in weights]
        self.a = []
        self.m = [np.zeros_like(b) for b in self.b]
        self.f = [np.zeros_like(b) for b in self.b]

    def rate(self, name: str) -> np.float32:
        return np.float32(self.c[name])

    def retain(self, i: int, g: np.ndarray) -> None:
        mu = self.c["retain_momentum"]
        m = bf16(self.m[i] * np.float32(mu))
        t = bf16(g * np.float32(1 - mu))
        self.m[i] = bf16(m + t)
        t = bf16(self.rate("retaining_rate") * self.m[i])
        self.b[i] = bf16(self.b[i] - t)

    def adversary(self, i: int, g: np.ndarray) -> None:
        t = bf16(self.rate("adv_lr") * g)
        self.a[i] = bf16(self.a[i] - t)
        d = self.c["adv_decay"]
        if d != 1:
            t = bf16(self.b[i] * np.float32(1 - d))
            a = bf16(self.a[i] * np.float32(d))
            self.a[i] = bf16(a + t)

    def norm(self, grads: list[np.ndarray]) -> np.float32:
        total = np.float32(0)
        for g in grads:
            n = bf16(np.sqrt(np.sum(g.astype(np.float64) ** 2)))
            total = bf16(total + bf16(n * n))
        return bf16(np.sqrt(total))

    def unlearn(self, i: int, g: np.ndarray, n: np.float32) -> None:
        size = sum(b.size for b in self.b)
        beta, discard, update = (self.c[k] for k in ("forget_momentum", "discard_growing_weights", "adv_update"))
        if beta:
            f = bf16(self.f[i] * np.float32(beta))
            t = bf16(g * np.float32(1 - beta))
            g = self.f[i] = bf16(f + t)
        g = bf16(g * (np.sign(self.m[i]) == np.sign(g)))
        if discard != 1:
            g = np.where(np.sign(self.b[i]) != np.sign(g), bf16(g * np.float32(discard)), g)
        scale = bf16(np.float32(1) / n)
        if self.c["rate_scale"] == "study":
            scale = bf16(scale * np.float32(size**0.5))
        g = bf16(g * scale)
        t = bf16(self.rate("unlearning_rate") * g)
        self.b[i] = bf16(self.b[i] - t)
        if update:
            t = bf16(np.float32(update * self.c["unlearning_rate"]) * g)
            self.a[i] = bf16(self.a[i] - t)

    def loop(self, t: int, grads: dict[str, list[np.ndarray]]) -> None:
        if t % self.c["fork_every_n_loops"] == 0:
            self.a = [b.copy() for b in self.b]
        for i, g in enumerate(grads["retain"]):
            self.retain(i, g)
        for i, g in enumerate(grads["adversary"]):
            self.adversary(i, g)
        n = self.norm(grads["unlearning"])
        for i, g in enumerate(grads["unlearning"]):
            self.unlearn(i, g, n)


def check_bfloat16(config: dict, trace: Trace, weights: list[torch.Tensor]) -> None:
    replay = Bfloat16Replay(config, [w.detach().float().numpy() for w in weights])
    for t, loop in enumerate(trace.gradients):
        replay.loop(t, {kind: [g.float().numpy() for g in tensors] for kind, tensors in loop.items()})
    pairs = ((replay.b, trace.base), (replay.a, trace.adversary), (replay.m, trace.retain_acc))
    for ours, theirs in (*pairs, (replay.f, trace.forget_acc)):
        for x, y in zip(ours, theirs.values()):
            assert np.array_equal(x, y.float().numpy()), "the documented bfloat16 order does not reproduce the trace"
