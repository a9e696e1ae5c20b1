"""Hugging Face models made to compute wholly in float64, the losses, and the checks of both.

transformers computes RMS norms, attention softmax and the rotary tables in float32 even in a float64 model.
The functions here replace those. One thing stays float32 on purpose, because it defines the model: the inverse
frequencies and the rotary *angles* (frequency times position). Their cosine and sine are float64.
"""
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM
from transformers.models.gpt_neox import modeling_gpt_neox
from transformers.models.llama import modeling_llama
from transformers.models.olmo2 import modeling_olmo2
from transformers.models.qwen2 import modeling_qwen2
from transformers.models.qwen3 import modeling_qwen3

from rows import Rows, chosen, labels_of, learnt, tokens_of, valid_of

Losses = dict[str, Tensor]

_inside_angles = False


@contextmanager
def float32_angles():
    """Marks the one place where float32 is meant."""
    global _inside_angles
    _inside_angles = True
    try:
        yield
    finally:
        _inside_angles = False


class NoFloat32(TorchDispatchMode):
    """Raises when any operation, forward or backward, yields a float32 tensor."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, (tuple, list)) else (out,):
            narrow = isinstance(value, Tensor) and value.dtype in (torch.float32, torch.bfloat16, torch.float16)
            if narrow and not _inside_angles:
                raise AssertionError(f"{func} computed in {value.dtype}")
        return out


def rms_norm(self, x: Tensor) -> Tensor:
    variance = x.pow(2).mean(-1, keepdim=True)
    return self.weight * (x * torch.rsqrt(variance + self.variance_epsilon))


@torch.no_grad()
def rotary_tables(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
    with float32_angles():
        angles = position_ids[..., None].to(torch.float32) * self.inv_freq.to(torch.float32)
    angles = torch.cat((angles.to(x.dtype),) * 2, dim=-1)
    return angles.cos() * self.attention_scaling, angles.sin() * self.attention_scaling


def eager_attention(module, query, key, value, attention_mask, scaling, dropout=0.0, **_):
    groups = getattr(module, "num_key_value_groups", 1)
    key, value = (t.repeat_interleave(groups, dim=1) for t in (key, value))
    scores = query @ key.transpose(2, 3) * scaling + attention_mask
    probabilities = scores.softmax(-1)
    return (probabilities @ value).transpose(1, 2).contiguous(), probabilities


def patch_transformers() -> None:
    modeling_llama.LlamaRMSNorm.forward = rms_norm
    modeling_qwen2.Qwen2RMSNorm.forward = rms_norm
    modeling_qwen3.Qwen3RMSNorm.forward = rms_norm
    modeling_olmo2.Olmo2RMSNorm.forward = rms_norm
    modeling_llama.LlamaRotaryEmbedding.forward = rotary_tables
    modeling_qwen2.Qwen2RotaryEmbedding.forward = rotary_tables
    modeling_qwen3.Qwen3RotaryEmbedding.forward = rotary_tables
    modeling_olmo2.Olmo2RotaryEmbedding.forward = rotary_tables
    modeling_gpt_neox.GPTNeoXRotaryEmbedding.forward = rotary_tables
    for module in (modeling_llama, modeling_qwen2, modeling_qwen3, modeling_olmo2, modeling_gpt_neox):
        module.eager_attention_forward = eager_attention


def load_model(folder: Path, dtype: torch.dtype = torch.float64) -> nn.Module:
    """The stored float32 weights, widened. `rotary` buffers keep the values they were made with in float32."""
    patch_transformers()
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    if any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")):
        raise AssertionError(f"{folder}: {info}")
    return model.to(dtype).eval()


def stored_name(name: str, model: nn.Module) -> str:
    """The name of a parameter in the files: transformers 5 calls GPT-NeoX's head lm_head only in memory."""
    if model.config.model_type == "gpt_neox" and name == "lm_head.weight":
        return "embed_out.weight"
    return name


def parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """All parameters under their stored names, tied ones once."""
    return {stored_name(name, model): p for name, p in model.named_parameters()}


def targets(model: nn.Module, modules: list[str]) -> dict[str, nn.Parameter]:
    """W: the parameters whose name contains `<module>.weight`, in model order."""
    chosen = {
        name: p for name, p in parameters(model).items() if any(f"{module}.weight" in name for module in modules)
    }
    if not chosen:
        raise ValueError(f"no parameter matches {modules}")
    return chosen


def logits_of(model: nn.Module, tokens: Tensor | Rows) -> Tensor:
    return model(input_ids=tokens_of(tokens), use_cache=False).logits


@dataclass
class Outputs:
    """Of one forward: the logits, and what each layer reads; what leaves the last one is not among the states."""

    logits: Tensor
    states: tuple[Tensor, ...]


def outputs_of(model: nn.Module, tokens: Tensor | Rows) -> Outputs:
    out = model(input_ids=tokens_of(tokens), use_cache=False, output_hidden_states=True)
    assert len(out.hidden_states) == model.config.num_hidden_layers + 1
    return Outputs(out.logits, out.hidden_states[:-1])


def cross_entropy(logits: Tensor, tokens: Tensor | Rows) -> Tensor:
    """Where the label is -100 there is no term, and it does not count."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels_of(tokens)[:, 1:].flatten())


def neg_entropy(logits: Tensor, tokens: Tensor | Rows) -> Tensor:
    """Over all positions, the last one included."""
    log_p = logits.log_softmax(-1)
    return chosen((log_p.exp() * log_p).sum(-1), valid_of(tokens)).mean()


def divergence(start: Tensor, now: Tensor, tokens: Tensor | Rows) -> Tensor:
    """Mean over positions that are no padding of KL(start || now), from the logits of both."""
    terms = F.kl_div(now.log_softmax(-1), start.log_softmax(-1), log_target=True, reduction="none").sum(-1)
    return chosen(terms, valid_of(tokens)).mean()


def answer_probability(logits: Tensor, tokens: Tensor | Rows) -> Tensor:
    """Mean over rows of exp(-mean cross-entropy of what is learnt of the row)."""
    labels = labels_of(tokens)[:, 1:]
    terms = F.cross_entropy(logits[:, :-1].transpose(1, 2), labels, reduction="none")
    return (-terms.sum(-1) / (labels != -100).sum(-1)).exp().mean()


def correct_logit_values(logits: Tensor, tokens: Tensor | Rows) -> Tensor:
    """z_y - mean z at every shifted position that is learnt."""
    correct = logits[:, :-1].gather(-1, tokens_of(tokens)[:, 1:, None]).squeeze(-1)
    return chosen(correct - logits[:, :-1].mean(-1), learnt(tokens))


def correct_logit_minus_avg(logits: Tensor, tokens: Tensor | Rows, clip_at: float = 0.0) -> Tensor:
    """clamp passes the gradient where value >= clip_at."""
    return correct_logit_values(logits, tokens).clamp(min=clip_at).mean()


def sequence_log_probability(logits: Tensor, tokens: Tensor | Rows) -> Tensor:
    """[B]: log p of a sequence's tokens after the first, as far as they are learnt."""
    log_p = logits[:, :-1].log_softmax(-1).gather(-1, tokens_of(tokens)[:, 1:, None]).squeeze(-1)
    mask = learnt(tokens)
    return (log_p if mask is None else log_p * mask).sum(-1)


def npo(logits: Tensor, tokens: Tensor | Rows, beta: float, reference: Tensor) -> Tensor:
    """Zhang et al. 2024: the odds of the sequence against the reference model's."""
    ratio = sequence_log_probability(logits, tokens) - reference
    return (-2 / beta * F.logsigmoid(-beta * ratio)).mean()


def simnpo(logits: Tensor, tokens: Tensor | Rows, beta: float, gamma: float) -> Tensor:
    """Fan et al. 2024: the mean log-probability of a token in place of the odds."""
    mask = learnt(tokens)
    count = tokens_of(tokens).shape[1] - 1 if mask is None else mask.sum(-1)
    mean = sequence_log_probability(logits, tokens) / count
    return (-2 / beta * F.logsigmoid(-beta * mean - gamma)).mean()


# Of the losses on states, `valid` [B, T] tells tokens from padding; None: there is none.


def distance_loss(states: tuple[Tensor, ...], frozen: tuple[Tensor, ...], squared: bool, valid=None) -> Tensor:
    """Mean over states, batch and tokens of |h - h0|, or of its square. The norm has gradient 0 at 0."""
    lengths = torch.stack([(h - h0).norm(dim=-1) if not squared else (h - h0).pow(2).sum(-1)
                           for h, h0 in zip(states, frozen, strict=True)])
    return chosen(lengths, valid).mean()


def circuit_breaker(states: tuple[Tensor, ...], frozen: tuple[Tensor, ...], valid=None) -> Tensor:
    """Mean over tokens of the positive part of cos(h, h0), halfway up."""
    h, h0 = states[len(states) // 2], frozen[len(states) // 2]
    return chosen(F.cosine_similarity(h, h0, dim=-1).relu(), valid).mean()


def stream_activation(states: tuple[Tensor, ...], valid=None) -> Tensor:
    """Sum over states of (mean over tokens of |h|)^2."""
    return sum(chosen(h.norm(dim=-1), valid).mean() ** 2 for h in states)


def splitmix64(seed: int, counter: int) -> int:
    mask = (1 << 64) - 1
    z = (seed + (counter + 1) * 0x9E3779B97F4A7C15) & mask
    z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ z >> 27) * 0x94D049BB133111EB) & mask
    return z ^ z >> 31


def rmu_direction(width: int, seed: int) -> Tensor:
    """Of length 1: uniform numbers of (0, 1), the upper 53 bits and a half."""
    v = torch.tensor([((splitmix64(seed, j) >> 11) + 0.5) / 2**53 for j in range(width)], dtype=torch.float64)
    return v / v.norm()


def rmu(h: Tensor, coefficient: float, seed: int, valid=None) -> Tensor:
    """Mean squared error of h against a fixed random vector of length `coefficient`."""
    target = (coefficient * rmu_direction(h.shape[-1], seed)).to(h.dtype)
    h = h if valid is None else h[valid]
    return F.mse_loss(h, target.expand_as(h))


def loss_by_name(name: str, logits: Tensor, tokens: Tensor | Rows, clip_at: float = 0.0) -> Tensor:
    if name == "cross_entropy":
        return cross_entropy(logits, tokens)
    if name == "neg_cross_entropy":
        return -cross_entropy(logits, tokens)
    if name == "neg_entropy":
        return neg_entropy(logits, tokens)
    if name == "correct_logit_minus_avg":
        return correct_logit_minus_avg(logits, tokens, clip_at)
    raise ValueError(f"unknown loss {name}")


LOSSES = ("cross_entropy", "neg_cross_entropy", "neg_entropy", "correct_logit_minus_avg")


def gradients(model: nn.Module, tokens: Tensor, name: str) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss and its gradient by every parameter; a tied embedding gets the sum of both uses."""
    weights = parameters(model)
    loss = loss_by_name(name, logits_of(model, tokens), tokens)
    return loss.detach(), dict(zip(weights, torch.autograd.grad(loss, list(weights.values()))))


def assert_float64(model: nn.Module, tokens: Tensor) -> None:
    with NoFloat32():
        for name in LOSSES:
            gradients(model, tokens, name)


@torch.no_grad()
def finite_difference_error(model: nn.Module, tokens: Tensor, name: str, step: float = 1e-5) -> float:
    """Largest relative gap, over the parameters, between autograd and a central difference.

    Each parameter is moved along a random direction, so one difference checks all of its elements; but
    for the embedding of padding, of which PyTorch forms no gradient.
    """
    with torch.enable_grad():
        _, grads = gradients(model, tokens, name)
    rng = torch.Generator().manual_seed(0)
    worst = 0.0
    for key, p in parameters(model).items():
        direction = torch.randn(p.shape, generator=rng, dtype=p.dtype)
        padding = model.get_input_embeddings().padding_idx
        if p is model.get_input_embeddings().weight and padding is not None:
            direction[padding] = 0
        direction /= direction.norm()
        ends = []
        for sign in (1, -1):
            p.add_(direction, alpha=sign * step)
            ends.append(loss_by_name(name, logits_of(model, tokens), tokens))
            p.sub_(direction, alpha=sign * step)
        numeric = (ends[0] - ends[1]) / (2 * step)
        worst = max(worst, float((numeric - (grads[key] * direction).sum()).abs() / grads[key].norm()))
    return worst
