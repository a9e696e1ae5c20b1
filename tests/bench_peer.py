#!/usr/bin/env python3
"""Times one MUDMAN loop and one relearning step against PyTorch, on this machine's CPU, in float32.

    bench_peer.py [--binary build/tests/bench_loop] [--threads 1] [--shapes demo pythia-14m smollm-135m]
                  [--rounds 3] [--repeats 5]

The peer is the paper's Listing 1 on a Hugging Face model: gradients of the intervened weights only, one retained
graph for the adversary's and the unlearning backward pass (loss neg_cross_entropy). It runs with eager and with
fused (sdpa) attention, and the faster one counts. Weights and tokens are random. Needs torch and transformers
(tests/golden/requirements.txt).

Every measurement is a fresh process, so that its peak memory is its own, and the programs take turns, in
alternating order, so that a busy moment does not fall on one of them. A process times `repeats` runs after a
warm-up and prints their median; the table shows the smallest over the rounds, as other programs only add time.
With as many threads as idle cores or fewer the numbers mean something. With more they do not: OpenMP threads that
wait for one without a core made PyTorch 7 to 65 times slower. The last line says how busy the machine was.
The peer's peak memory includes the libraries that importing PyTorch loads, several hundred MiB.

Our binary is called as   bench_loop --shape NAME --what loop|relearn --threads N --repeats K
and prints               shape=<name> what=<what> threads=<n> ms=<median> tokens_per_s=<...> peak_bytes=<...>
"""
import argparse
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

# torch is imported in the workers only: a child starts with its parent's peak memory on its account.

ATTENTIONS = ("eager", "sdpa")
WHATS = ("loop", "relearn")
RATES = {"retain": 1e-3, "adversary": 1e-3, "unlearn": 1e-2, "relearn": 1e-3}
RETAIN_MOMENTUM = 0.9


@dataclass(frozen=True)
class Shape:
    family: str
    target: str
    batch: int
    context: int
    config: dict

    def tokens(self, what: str) -> int:
        """A loop reads a retain batch and a forget batch."""
        return self.batch * self.context * (2 if what == "loop" else 1)


def llama(hidden: int, layers: int, heads: int, kv_heads: int, mlp: int, vocab: int) -> dict:
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": mlp,
        "vocab_size": vocab,
        "tie_word_embeddings": True,
    }


SHAPES = {
    "demo": Shape("llama", "gate_proj", 8, 96, llama(64, 3, 4, 2, 192, 256)),
    "pythia-14m": Shape(
        "gpt_neox",
        "dense_h_to_4h",
        4,
        100,
        {
            "hidden_size": 128,
            "num_hidden_layers": 6,
            "num_attention_heads": 4,
            "intermediate_size": 512,
            "vocab_size": 50304,
            "rotary_pct": 0.25,
        },
    ),
    "smollm-135m": Shape("llama", "gate_proj", 4, 100, llama(576, 30, 9, 3, 1536, 49152)),
}


# The worker: PyTorch.


def build_model(shape: Shape, attention: str):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(shape.family, use_cache=False, **shape.config)
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=torch.float32)


def cross_entropy(logits, tokens):
    from torch.nn import functional as F

    return F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


class Listing1:
    """The paper's Listing 1, its lines in order; fork_every_n_loops is beyond the timed loops."""

    def __init__(self, model, target: str):
        import torch

        self.model = model
        self.params = [p for name, p in model.named_parameters() if f"{target}.weight" in name]
        model.requires_grad_(False)
        for p in self.params:
            p.requires_grad_(True)
            p.retain_acc = torch.zeros_like(p.data)
            p.base_data = p.data.clone()
            p.adv_data = p.data.clone()

    def step(self, retain, forget) -> None:
        self.retain(retain)
        logits = self.relearn(forget)
        self.unlearn(logits, forget)

    def retain(self, tokens) -> None:
        self.model.zero_grad()
        for p in self.params:
            p.data = p.base_data
        cross_entropy(self.model(tokens).logits, tokens).backward()
        for p in self.params:
            p.retain_acc *= RETAIN_MOMENTUM
            p.retain_acc += p.grad * (1 - RETAIN_MOMENTUM)
            p.base_data -= RATES["retain"] * p.retain_acc

    def relearn(self, tokens):
        self.model.zero_grad()
        for p in self.params:
            p.data = p.adv_data
        logits = self.model(tokens).logits
        cross_entropy(logits, tokens).backward(retain_graph=True)
        for p in self.params:
            p.adv_data -= RATES["adversary"] * p.grad
        return logits

    def unlearn(self, logits, tokens) -> None:
        self.model.zero_grad()
        (-cross_entropy(logits, tokens)).backward()
        norm = sum(p.grad.norm() ** 2 for p in self.params) ** 0.5
        for p in self.params:
            p.grad *= p.retain_acc.sign() == p.grad.sign()
            p.base_data -= RATES["unlearn"] / norm * p.grad


def relearning(model):
    """Plain SGD on all parameters."""
    import torch

    optimizer = torch.optim.SGD(model.parameters(), lr=RATES["relearn"])

    def step(tokens) -> None:
        optimizer.zero_grad()
        cross_entropy(model(tokens).logits, tokens).backward()
        optimizer.step()

    return step


def median_ms(step, repeats: int) -> float:
    step()  # the first run allocates
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        step()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def work(args: argparse.Namespace) -> None:
    import torch

    torch.set_num_threads(args.threads)
    name = args.shapes[0]
    shape = SHAPES[name]
    model = build_model(shape, args.attention)
    retain, forget = torch.randint(shape.config["vocab_size"], (2, shape.batch, shape.context))
    if args.what == "loop":
        listing = Listing1(model, shape.target)
        ms = median_ms(lambda: listing.step(retain, forget), args.repeats)
    else:
        step = relearning(model)
        ms = median_ms(lambda: step(forget), args.repeats)
    print(f"shape={name} what={args.what} threads={args.threads} ms={ms:.4f}")


# The parent: takes turns and compares.


@dataclass
class Samples:
    ms: list[float]
    peaks: list[int]

    def add(self, ms: float, peak: int) -> None:
        self.ms.append(ms)
        self.peaks.append(peak)

    @property
    def best(self) -> float:
        return min(self.ms)

    @property
    def peak_mib(self) -> float:
        return max(self.peaks) / 2**20


def command_of(program: str, args: argparse.Namespace, name: str, what: str) -> list[str]:
    options = ["--what", what, "--threads", str(args.threads), "--repeats", str(args.repeats)]
    if program == "ours":
        return [str(args.binary), "--shape", name, *options]
    return [sys.executable, __file__, "--worker", "--attention", program, "--shapes", name, *options]


def measure(command: list[str], threads: int) -> tuple[float, int]:
    """(ms that the process printed, its peak memory in bytes)."""
    counts = {key: str(threads) for key in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    process = subprocess.Popen(command, env=os.environ | counts, stdout=subprocess.PIPE, text=True)
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    fields = dict(word.split("=", 1) for word in output.split() if "=" in word)
    if process.returncode != 0 or "ms" not in fields:
        raise SystemExit(f"{' '.join(command)}: exit {process.returncode}\n{output}")
    return float(fields["ms"]), usage.ru_maxrss * 1024


def busy_cores(seconds: float = 0.3) -> float:
    """Cores that other programs keep busy; called while none of ours runs."""

    def sample() -> tuple[int, int]:
        ticks = [int(word) for word in Path("/proc/stat").read_text(encoding="ascii").split()[1:9]]
        return sum(ticks), ticks[3] + ticks[4]  # all, idle and waiting for disks

    before = sample()
    time.sleep(seconds)
    after = sample()
    spent, idle = after[0] - before[0], after[1] - before[1]
    return os.cpu_count() * (spent - idle) / spent if spent else 0.0


def compare(args: argparse.Namespace, name: str, what: str, programs: list[str]) -> dict[str, Samples]:
    samples = {program: Samples([], []) for program in programs}
    for turn in range(args.rounds):
        for program in programs if turn % 2 == 0 else reversed(programs):
            args.busy.append(busy_cores())
            samples[program].add(*measure(command_of(program, args, name, what), args.threads))
    return samples


HEADER = (
    f"{'shape':12} {'what':8} {'ours ms':>9} {'peer ms':>9} {'ratio':>6} "
    f"{'ours tok/s':>11} {'peer tok/s':>11} {'ours MiB':>9} {'peer MiB':>9}  peer attention"
)


def row(name: str, what: str, samples: dict[str, Samples]) -> str:
    winner = min(ATTENTIONS, key=lambda attention: samples[attention].best)
    peer, ours = samples[winner], samples.get("ours")
    rate = 1e3 * SHAPES[name].tokens(what)
    cells = [f"{name:12} {what:8}"]
    cells.append(f"{ours.best:9.2f}" if ours else f"{'-':>9}")
    cells.append(f"{peer.best:9.2f}")
    cells.append(f"{peer.best / ours.best:6.2f}" if ours else f"{'-':>6}")
    cells.append(f"{rate / ours.best:11.0f}" if ours else f"{'-':>11}")
    cells.append(f"{rate / peer.best:11.0f}")
    cells.append(f"{ours.peak_mib:9.0f}" if ours else f"{'-':>9}")
    cells.append(f"{peer.peak_mib:9.0f}")
    other = next(attention for attention in ATTENTIONS if attention != winner)
    return " ".join(cells) + f"  {winner} ({other} {samples[other].best:.2f} ms)"


def machine_load(args: argparse.Namespace) -> str:
    free = len(os.sched_getaffinity(0)) - max(args.busy)
    mean, most = statistics.mean(args.busy), max(args.busy)
    text = f"other programs kept {mean:.1f} of {os.cpu_count()} cores busy, {most:.1f} at most"
    return text if args.threads <= free + 0.2 else text + f": too busy to trust {args.threads} threads"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    root = Path(__file__).resolve().parent.parent
    parser.add_argument("--binary", type=Path, default=root / "build/tests/bench_loop")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--what", choices=WHATS, help=argparse.SUPPRESS)
    parser.add_argument("--attention", choices=ATTENTIONS, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = parse()
    if args.worker:
        work(args)
        return
    args.busy = []
    programs = list(ATTENTIONS)
    if args.binary.exists():
        programs.insert(0, "ours")
    else:
        print(f"{args.binary} is not there: the peer alone", file=sys.stderr)
    print(f"{args.threads} threads, {args.rounds} rounds of {args.repeats} runs; ratio above 1: ours is faster")
    print(HEADER)
    for name in args.shapes:
        for what in WHATS:
            print(row(name, what, compare(args, name, what, programs)), flush=True)
    print(machine_load(args))


if __name__ == "__main__":
    main()
