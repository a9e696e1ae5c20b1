#!/usr/bin/env python3
"""Times one MUDMAN loop (and, on a CPU, one relearning step) against PyTorch, on this machine.

    bench_peer.py [--binary build/tests/bench_loop] [--threads 1] [--shapes demo pythia-14m smollm-135m]
                  [--rounds 3] [--repeats 5] [--dtype bfloat16]
    bench_peer.py --device cuda [--binary build/tests/bench_loop] [--repeats 20] [--seconds 240]

The peer is the paper's Listing 1 on a Hugging Face model: gradients of the intervened weights only, one retained
graph for the adversary's and the unlearning backward pass (loss neg_cross_entropy). It runs with eager and with
fused (sdpa) attention, and the faster one counts. Weights and tokens are random. Needs torch and transformers
(tests/golden/requirements.txt).

On a CPU, in float32 or bfloat16: every measurement is a fresh process, so that its peak memory is its own, and the programs take turns, in
alternating order, so that a busy moment does not fall on one of them. A process times `repeats` runs after a
warm-up and prints their median; the table shows the smallest over the rounds, as other programs only add time.
With as many threads as idle cores or fewer the numbers mean something. With more they do not: OpenMP threads that
wait for one without a core made PyTorch 7 to 65 times slower. The last line says how busy the machine was.
The peer's peak memory includes the libraries that importing PyTorch loads, several hundred MiB. In bfloat16 the
peer's vectors and steps are bfloat16 too, as the authors have it; ours keeps b, a, m and relearning's masters in float32.

On a GPU, in bfloat16, the peer's weights and vectors too, as the authors have it: our programs first, one process a
measurement; then one process for all of the peer's, eager and then with torch.compile, the GPU being waited for once in
every 5 loops. `--seconds` bounds the whole: what it leaves no time for is shown as "-". Peak memory is what each
program took of the GPU's by its own count, without the CUDA context.

Our binary prints `key=value` words, ms and peak_bytes among them: see tests/bench/bench_loop.c.
"""

import argparse
import gc
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from math import isnan
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
    "llama-1b": Shape("llama", "gate_proj", 16, 100, llama(2048, 16, 32, 8, 8192, 128256)),
}
CPU_SHAPES = ("demo", "pythia-14m", "smollm-135m")
# (shape, sequences of 100 tokens), the most wanted first.
GPU_CASES = (("llama-1b", 16), ("smollm-135m", 16), ("pythia-14m", 16), ("llama-1b", 1), ("llama-1b", 64))
# What our program is measured with on a GPU: graph mode, dtype of b, a and m.
GPU_VARIANTS = (("listing", "float32"), ("reuse", "float32"), ("listing", "bfloat16"))
LOOPS_AT_ONCE = 5


# The worker: PyTorch.


def build_model(shape: Shape, attention: str, device: str, dtype: str):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(shape.family, use_cache=False, **shape.config)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(
            config, attn_implementation=attention, dtype=getattr(torch, dtype)
        )


def cross_entropy(logits, tokens):
    from torch.nn import functional as F

    return F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


class Listing1:
    """The paper's Listing 1, its lines in order; fork_every_n_loops is beyond the timed loops."""

    def __init__(self, model, target: str, compiled: bool = False):
        import torch

        self.model = model
        self.forward = torch.compile(model) if compiled else model
        self.cross_entropy = torch.compile(cross_entropy) if compiled else cross_entropy
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
        self.cross_entropy(self.forward(tokens).logits, tokens).backward()
        for p in self.params:
            p.retain_acc *= RETAIN_MOMENTUM
            p.retain_acc += p.grad * (1 - RETAIN_MOMENTUM)
            p.base_data -= RATES["retain"] * p.retain_acc

    def relearn(self, tokens):
        self.model.zero_grad()
        for p in self.params:
            p.data = p.adv_data
        logits = self.forward(tokens).logits
        self.cross_entropy(logits, tokens).backward(retain_graph=True)
        for p in self.params:
            p.adv_data -= RATES["adversary"] * p.grad
        return logits

    def unlearn(self, logits, tokens) -> None:
        self.model.zero_grad()
        (-self.cross_entropy(logits, tokens)).backward()
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


def gpu_ms(step, repeats: int) -> float:
    import torch

    def loops() -> None:
        for _ in range(LOOPS_AT_ONCE):
            step()
        torch.cuda.synchronize()

    return median_ms(loops, max(3, repeats // LOOPS_AT_ONCE)) / LOOPS_AT_ONCE


def gpu_case(name: str, batch: int, attention: str, compiled: bool, repeats: int) -> str:
    import torch

    shape = SHAPES[name]
    torch.cuda.reset_peak_memory_stats()
    listing = Listing1(build_model(shape, attention, "cuda", "bfloat16"), shape.target, compiled)
    tokens = torch.randint(shape.config["vocab_size"], (2, batch, shape.context), device="cuda")
    ms = gpu_ms(lambda: listing.step(*tokens), repeats)
    return f"ms={ms:.4f} peak_bytes={torch.cuda.max_memory_allocated()}"


def work_gpu(args: argparse.Namespace) -> None:
    """All of the peer's measurements, a line each; one that fails says why, and the next one follows."""
    import torch
    from torch._functorch import config as functorch

    functorch.donated_buffer = False  # Listing 1 goes back through one graph twice
    peers = [(attention, False) for attention in ATTENTIONS] + [("sdpa", True)]
    cases = [(*case, *peer) for some in (peers[:-1], peers[-1:]) for case in GPU_CASES for peer in some]
    for name, batch, attention, compiled in cases:
        try:
            result = gpu_case(name, batch, attention, compiled, args.repeats)
        except Exception as error:  # out of memory, or the compiler's: the table says "-" there
            print(f"{name} x{batch} {attention} compiled={compiled}: {error}".splitlines()[0], file=sys.stderr)
            continue
        finally:
            gc.collect()
            torch.cuda.empty_cache()
        print(f"shape={name} batch={batch} attention={attention} compiled={compiled} {result}", flush=True)


def work(args: argparse.Namespace) -> None:
    import torch

    torch.set_num_threads(args.threads)
    name = args.shapes[0]
    shape = SHAPES[name]
    model = build_model(shape, args.attention, "cpu", args.dtype)
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
    options = ["--what", what, "--threads", str(args.threads), "--repeats", str(args.repeats),
               "--dtype", args.dtype]  # fmt: skip
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


# The parent on a GPU.


def words_of(line: str) -> dict[str, str]:
    return dict(word.split("=", 1) for word in line.split() if "=" in word)


def run(command: list[str], args: argparse.Namespace, stderr=subprocess.PIPE) -> subprocess.CompletedProcess:
    left = max(1, args.end - time.time())
    return subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=stderr, text=True, timeout=left)


def ours_on_gpu(args: argparse.Namespace) -> dict[tuple, dict[str, str]]:
    """By (shape, batch, graph, dtype of the state); without those that failed or had no time left."""
    results = {}
    for name, batch in GPU_CASES:
        for graph, state in GPU_VARIANTS:
            options = {"shape": name, "batch": batch, "graph": graph, "state": state, "repeats": args.repeats}
            options |= {"device": "cuda", "dtype": "bfloat16"}
            command = [str(args.binary), *(str(word) for key, value in options.items() for word in (f"--{key}", value))]
            try:
                done = run(command, args)
            except subprocess.TimeoutExpired:
                return results
            if done.returncode == 0:
                results[name, batch, graph, state] = words_of(done.stdout)
            else:
                print(f"{' '.join(command)}: exit {done.returncode}: {done.stderr.strip()[-300:]}", file=sys.stderr)
    return results


def peer_on_gpu(args: argparse.Namespace) -> dict[tuple, dict[str, str]]:
    """By (shape, batch, compiled); the faster attention; what was done when time was up."""
    command = [sys.executable, __file__, "--worker", "--device", "cuda", "--repeats", str(args.repeats)]
    try:
        output = run(command, args, stderr=None).stdout
    except subprocess.TimeoutExpired as late:
        output = (late.stdout or b"").decode()
    results = {}
    for words in map(words_of, output.splitlines()):
        key = words["shape"], int(words["batch"]), words["compiled"] == "True"
        if key not in results or float(words["ms"]) < float(results[key]["ms"]):
            results[key] = words
    return results


GPU_HEADER = (
    f"{'shape':12} {'tokens':>6} {'listing':>8} {'reuse':>8} {'eager':>8} {'compiled':>8} {'eager/l.':>8} "
    f"{'comp./l.':>8} {'MFU %':>6} {'MiB f32':>8} {'MiB bf16':>8} {'eager MiB':>9} {'comp. MiB':>9}"
)


def gpu_row(name: str, batch: int, ours: dict, peer: dict) -> str:
    listing, reuse, half = (ours.get((name, batch, *variant), {}) for variant in GPU_VARIANTS)
    eager, compiled = (peer.get((name, batch, compiled), {}) for compiled in (False, True))

    def number(words: dict[str, str], key: str, factor: float = 1) -> float:
        return factor * float(words[key]) if key in words else float("nan")

    def cell(value: float, width: int, digits: int) -> str:
        return f"{'-':>{width}}" if isnan(value) else f"{value:{width}.{digits}f}"

    ms = [number(words, "ms") for words in (listing, reuse, eager, compiled)]
    cells = [f"{name:12} {batch * SHAPES[name].context:6}", *(cell(value, 8, 2) for value in ms)]
    cells += [cell(value / ms[0], 8, 2) for value in ms[2:]] + [cell(number(listing, "mfu", 100), 6, 1)]
    peaks = ((listing, 8), (half, 8), (eager, 9), (compiled, 9))
    cells += [cell(number(words, "peak_bytes", 2**-20), width, 0) for words, width in peaks]
    return " ".join(cells)


def compare_on_gpu(args: argparse.Namespace) -> bool:
    """Prints the table; whether nothing of it is missing."""
    ours = ours_on_gpu(args) if args.binary.exists() else {}
    peer = peer_on_gpu(args)
    print("ms a loop, bfloat16; MiB f32, bf16: ours with b, a and m so; l.: ours, graph listing")
    print(GPU_HEADER)
    for name, batch in GPU_CASES:
        print(gpu_row(name, batch, ours, peer))
    return len(ours) == len(GPU_CASES) * len(GPU_VARIANTS) and len(peer) == 2 * len(GPU_CASES)


def machine_load(args: argparse.Namespace) -> str:
    free = len(os.sched_getaffinity(0)) - max(args.busy)
    mean, most = statistics.mean(args.busy), max(args.busy)
    text = f"other programs kept {mean:.1f} of {os.cpu_count()} cores busy, {most:.1f} at most"
    return text if args.threads <= free + 0.2 else text + f": too busy to trust {args.threads} threads"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    root = Path(__file__).resolve().parents[2]
    parser.add_argument("--binary", type=Path, default=root / "build/tests/bench_loop")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="on a CPU")
    parser.add_argument("--shapes", nargs="+", default=list(CPU_SHAPES), choices=list(SHAPES), help="on a CPU")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=5, help="timed runs; 20 are better on a GPU")
    parser.add_argument("--seconds", type=float, default=240, help="for the whole, on a GPU")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--what", choices=WHATS, help=argparse.SUPPRESS)
    parser.add_argument("--attention", choices=ATTENTIONS, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = parse()
    args.end = time.time() + args.seconds
    if args.worker:
        (work if args.device == "cpu" else work_gpu)(args)
        return
    if args.device == "cuda":
        sys.exit(0 if compare_on_gpu(args) else 1)
    args.busy = []
    programs = list(ATTENTIONS)
    if args.binary.exists():
        programs.insert(0, "ours")
    else:
        print(f"{args.binary} is not there: the peer alone", file=sys.stderr)
    print(f"{args.dtype}, {args.threads} threads, {args.rounds} rounds of {args.repeats} runs; ratio above 1: ours is faster")
    print(HEADER)
    for name in args.shapes:
        for what in WHATS:
            print(row(name, what, compare(args, name, what, programs)), flush=True)
    print(machine_load(args))


if __name__ == "__main__":
    main()
