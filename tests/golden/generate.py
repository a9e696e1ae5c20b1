"""Writes the golden files of every case; README.md says what is in them.

    generate.py [--cases NAME ...]                  write models, reference.h5 and traces.h5
    generate.py --find-seeds [--cases NAME ...]     print token seeds whose traces float32 can follow
"""
import argparse
import dataclasses
from pathlib import Path

import h5py
import numpy as np
import torch
from transformers.utils import logging

import oracle
import rows as ragged
import training
import unlearn
import variants
import verify
from models import CASES, Case, token_rows, write_model
from unlearn import Trace

HERE = Path(__file__).resolve().parent
REFERENCE_ROWS = 4
# Name, and number of rows: none is a multiple of the batch, so that batches wrap.
SETS = {"retain": 10, "forget": 7, "retain_validation": 10, "forget_validation": 9}
# Autograd and central differences; the differences themselves carry an error near 1e-9.
FINITE_DIFFERENCE_TOLERANCE = 1e-7


def create(path: Path) -> h5py.File:
    """The HDF5 1.8 layout, which every later version reads: its groups are a third the size of the oldest one's."""
    return h5py.File(path, "w", libver=("v108", "v108"))


def put(group: h5py.Group, name: str, value, dtype=None) -> None:
    """Contiguous and without time stamps, so that the same values give the same bytes."""
    data = value.detach().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
    group.create_dataset(name, data=data, dtype=dtype, track_times=False)


def put_bfloat16(group: h5py.Group, name: str, value: torch.Tensor) -> None:
    """As HDF5's 16-bit float with 8 exponent and 7 mantissa bits, which h5py can only make by low-level calls."""
    kind = h5py.h5t.IEEE_F32LE.copy()
    kind.set_fields(15, 7, 8, 0, 7)
    kind.set_size(2)
    kind.set_ebias(127)
    space = h5py.h5s.create_simple(tuple(value.shape))
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_obj_track_times(False)
    dataset = h5py.h5d.create(group.id, name.encode(), kind, space, plist)
    dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, value.float().numpy())


def put_tensors(group: h5py.Group, name: str, tensors: dict[str, torch.Tensor]) -> None:
    for key, value in tensors.items():
        put(group, f"{name}/{key}", value.double())


def as_tokens(rows: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(rows.astype(np.int64))


def token_sets(case: Case) -> dict[str, np.ndarray]:
    return {
        name: token_rows(case, case.token_seed, stream, rows)
        for stream, (name, rows) in enumerate(SETS.items(), start=1)
    }


def write_reference(case: Case, folder: Path) -> None:
    model = oracle.load_model(folder)
    rows = token_rows(case, case.token_seed, stream=0, rows=REFERENCE_ROWS)
    tokens = as_tokens(rows)
    oracle.assert_float64(model, tokens)
    clip_gap = oracle.correct_logit_values(oracle.logits_of(model, tokens), tokens).abs().min()
    assert clip_gap > verify.MIN_CLIP_MARGIN, f"{case.name}: a logit is {clip_gap:.1e} from clip_at"
    with create(folder / "reference.h5") as file:
        file.attrs["case"] = case.name
        put(file, "tokens", rows)
        put(file, "logits", oracle.logits_of(model, tokens))
        for name in oracle.LOSSES:
            error = oracle.finite_difference_error(model, tokens, name)
            print(f"{case.name} {name}: finite differences agree to {error:.1e}")
            assert error < FINITE_DIFFERENCE_TOLERANCE
            loss, grads = oracle.gradients(model, tokens, name)
            put(file, f"loss/{name}", loss)
            for key, grad in grads.items():
                put(file, f"grad/{name}/{key}", grad)


def run_both(folder: Path, config: dict, sets: dict[str, np.ndarray]) -> tuple[Trace, Trace]:
    """The trace, and its twin in float32, which tells whether float32 can follow."""
    retain, forget = (
        rows if isinstance(rows, ragged.Rows) else as_tokens(rows) for rows in (sets["retain"], sets["forget"])
    )
    return tuple(
        unlearn.run(oracle.load_model(folder, dtype), config, retain, forget)
        for dtype in (torch.float64, torch.float32)
    )


def report(label: str, exact: Trace, rounded: Trace) -> None:
    gap = verify.largest_difference(exact.base, rounded.base)
    metric = max(
        abs(a - b) / (abs(a) or 1) for key in exact.metrics for a, b in zip(exact.metrics[key], rounded.metrics[key])
    )
    print(
        f"{label}: mask margin {exact.mask_margin:.1e}, safety {verify.rounding_safety(exact, rounded):.1f}, "
        f"clip margin {exact.clip_margin:.1e}; float32 stays within {gap:.1e} (base), {metric:.1e} (metrics)"
    )


def put_trace(group: h5py.Group, config: dict, trace: Trace) -> None:
    group.attrs["overrides"] = variants.as_overrides(config)
    for name, values in trace.metrics.items():
        put(group, name, values, np.float64)
    put_tensors(group, "base", trace.base)
    put_tensors(group, "adversary", trace.adversary)
    put_tensors(group, "retain_acc", trace.retain_acc)
    put_tensors(group, "forget_acc", trace.forget_acc)
    if with_gradients(config):
        put_gradients(group, trace)


def with_gradients(config: dict) -> bool:
    """Whether the trace has what a replay of its bfloat16 updates needs."""
    return config.get("model.state_dtype") == "bfloat16" and config.get("unlearn.train_adversary", True)


def put_gradients(group: h5py.Group, trace: Trace) -> None:
    """[loops, rows, columns] a tensor. HDF5 converts to float or double on reading."""
    for kind in ("retain", "adversary", "unlearning"):
        for i, name in enumerate(trace.base):
            stacked = torch.stack([loop[kind][i] for loop in trace.gradients])
            put_bfloat16(group.require_group(f"gradients/{kind}"), name, stacked)


def write_unlearning(file: h5py.File, case: Case, folder: Path, sets: dict[str, np.ndarray]) -> None:
    traces = {}
    for name, config in variants.variants_of(case).items():
        trace, rounded = run_both(folder, config, sets)
        report(f"{case.name} {name}", trace, rounded)
        weak = verify.weaknesses(config, trace, rounded)
        assert not weak, f"{case.name} {name}: {weak}; try --find-seeds"
        model = oracle.load_model(folder)
        if variants.on_states(config):
            verify.check_differences(model, config, as_tokens(sets["forget"]))
            model = oracle.load_model(folder)
        if with_gradients(config):
            w = oracle.targets(model, config["unlearn.target_modules"])
            verify.check_bfloat16(config, trace, list(w.values()))
        elif config.get("unlearn.train_adversary", True):
            verify.check_listing(model, config, as_tokens(sets["forget"]))
        put_trace(file.create_group(name), config, trace)
        traces[name] = trace
    verify.check_graph_modes_differ(traces)


def write_relearning(file: h5py.File, case: Case, folder: Path, sets: dict[str, np.ndarray]) -> None:
    for name, config in variants.relearns_of(case).items():
        forget, retain = (as_tokens(sets[f"{kind}_validation"]) for kind in ("forget", "retain"))
        model, stay = oracle.load_model(folder), None
        if variants.unlearns(config):
            stay = unlearn.run_on(model, config, *(as_tokens(sets[kind]) for kind in ("retain", "forget"))).adapters
        elif config.get("unlearn.lora_rank"):
            stay = training.adapters_beside(model, config)
        losses, retain_losses, params = training.relearn(model, config, forget, retain, stay)
        group = file.create_group(name)
        group.attrs["overrides"] = variants.as_overrides(config)
        put(group, "loss", losses, np.float64)
        if retain_losses:
            put(group, "retain_loss", retain_losses, np.float64)
        for key, value in params.items() if not variants.unlearns(config) else ():
            put(group, f"params/{key}", value, np.float64 if name in variants.RELEARNS else np.float32)
        print(f"{case.name} {name}: loss {losses[0]:.3f} to {losses[-1]:.3f}")


def write_pretraining(file: h5py.File, case: Case, folder: Path, sets: dict[str, np.ndarray]) -> None:
    config = variants.pretrain_of(case)
    retain, forget = as_tokens(sets["retain"]), as_tokens(sets["forget"])
    losses, norms, params = training.pretrain(oracle.load_model(folder), config, retain, forget)
    group = file.create_group("pretrain")
    group.attrs["overrides"] = variants.as_overrides(config)
    put(group, "loss", losses, np.float64)
    put(group, "grad_norm", norms, np.float64)
    put_tensors(group, "params", params)
    print(f"{case.name} pretrain: loss {losses[0]:.3f} to {losses[-1]:.3f}, gradient norm at least {min(norms):.2f}")


def write_traces(case: Case, folder: Path) -> None:
    sets = token_sets(case)
    with create(folder / "traces.h5") as file:
        file.attrs["case"] = case.name
        file.attrs["vocab_size"] = case.vocab
        for name, rows in sets.items():
            put(file, name, rows)
        write_unlearning(file, case, folder, sets)
        if case.name in variants.RELEARN_CASES:
            write_relearning(file, case, folder, sets)
        if case.name in variants.PRETRAIN_CASES:
            write_pretraining(file, case, folder, sets)


def check_labels(model, rows: ragged.Rows) -> None:
    """transformers' own loss of labels of -100, which it takes in float32, is the oracle's."""
    theirs = model(input_ids=rows.tokens, labels=rows.labels, use_cache=False).loss
    ours = oracle.cross_entropy(oracle.logits_of(model, rows), rows)
    assert abs(float(theirs) - float(ours)) < 1e-6 * float(ours)


def rows_sets(case: Case, seed: int) -> dict[str, ragged.Rows]:
    """The token sets of the traces, cut into rows of different lengths."""
    rng = np.random.default_rng([seed, 99])
    return {
        name: ragged.make(as_tokens(tokens), *ragged.random_shape(rng, len(tokens), case.context))
        for name, tokens in token_sets(case).items()
    }


def write_rows(case: Case, folder: Path) -> None:
    """rows.h5: the first seed of shapes whose traces float32 can follow."""
    for seed in range(40):
        sets, weak = rows_sets(case, seed), ""
        traces = {}
        for name, config in variants.rows_of(case).items():
            traces[name], rounded = run_both(folder, config, sets)
            weak = weak or verify.weaknesses(config, traces[name], rounded)
        if not weak:
            break
    assert not weak, f"{case.name} rows: {weak}"
    print(f"{case.name} rows: shapes of seed {seed}")
    check_labels(oracle.load_model(folder), sets["retain"])
    with create(folder / "rows.h5") as file:
        file.attrs["case"] = case.name
        for name, rows in sets.items():
            put(file, name, rows.tokens, np.uint32)
            put(file, f"{name}_lengths", rows.valid.sum(-1), np.uint32)
            put(file, f"{name}_answers", (rows.labels == ragged.NOT_LEARNT).logical_and(rows.valid).sum(-1), np.uint32)
        for name, config in variants.rows_of(case).items():
            check = verify.check_differences if variants.on_states(config) else verify.check_listing
            check(oracle.load_model(folder), config, sets["forget"])
            put_trace(file.create_group(name), config, traces[name])
        config = variants.relearns_of(case)["relearn_with_retain"]
        model = oracle.load_model(folder)
        losses, retain_losses, params = training.relearn(
            model, config, sets["forget_validation"], sets["retain_validation"]
        )
        group = file.create_group("relearn_with_retain")
        group.attrs["overrides"] = variants.as_overrides(config)
        put(group, "loss", losses, np.float64)
        put(group, "retain_loss", retain_losses, np.float64)
        put_tensors(group, "params", params)


def write_divergence(file: h5py.File, name: str, folder: Path, config: dict, sets: dict) -> None:
    """What evaluations find after 0, 2, 4, ... loops: [evaluations] each."""
    retain, forget = sets["retain_validation"], sets["forget_validation"][: config["data.batch_size"]]
    start = oracle.logits_of(oracle.load_model(folder), retain)
    found = {"kl": [], "forget_answer_probability": [], "forget_loss": []}
    for loops in range(0, config["unlearn.loops"] + 1, 2):
        model = oracle.load_model(folder)
        if loops:
            unlearn.run_on(model, config | {"unlearn.loops": loops}, sets["retain"], sets["forget"])
        logits = oracle.logits_of(model, forget)
        found["kl"].append(oracle.divergence(start, oracle.logits_of(model, retain), retain))
        found["forget_answer_probability"].append(oracle.answer_probability(logits, forget))
        found["forget_loss"].append(oracle.cross_entropy(logits, forget))
    for key, values in found.items():
        put(file, f"{name}/{key}", torch.stack(values).double())
    print(f"{name}: kl {[f'{float(value):.2e}' for value in found['kl']]}")


def write_divergences(case: Case, folder: Path) -> None:
    """divergence.h5: of the runs `listing` on whole rows and on those of rows.h5."""
    whole = {name: as_tokens(rows) for name, rows in token_sets(case).items()}
    with h5py.File(folder / "rows.h5") as rows:
        cut = {
            name: ragged.make(as_tokens(rows[name][:]), rows[f"{name}_lengths"][:], rows[f"{name}_answers"][:])
            for name in whole
        }
    with create(folder / "divergence.h5") as file:
        write_divergence(file, "traces", folder, variants.variants_of(case)["listing"], whole)
        write_divergence(file, "rows", folder, variants.rows_of(case)["listing"], cut)


def find_seeds(case: Case, folder: Path, tries: int = 40) -> None:
    for seed in range(tries):
        sets = token_sets(dataclasses.replace(case, token_seed=seed))
        weak = None
        for name, config in variants.variants_of(case).items():
            weak = verify.weaknesses(config, *run_both(folder, config, sets))
            if weak:
                break
        print(f"{case.name} token_seed={seed}: {f'{name}: {weak}' if weak else 'good'}", flush=True)
        if not weak:
            return


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--find-seeds", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    for name in args.cases:
        case, folder = CASES[name], HERE / name
        write_model(case, folder)
        if args.find_seeds:
            find_seeds(case, folder)
        else:
            write_reference(case, folder)
            write_traces(case, folder)
            if name in variants.ROWS_CASES:
                write_rows(case, folder)
                write_divergences(case, folder)


if __name__ == "__main__":
    main()
