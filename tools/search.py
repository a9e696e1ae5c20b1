#!/usr/bin/env python3
"""Search hyperparameters with Optuna over `mudman-mpi trials`; `--help` explains the use.

Every variant of the search file is a study. Trials go to the variant that has the fewest, each to
one resident server process; what a trial showed is stored as it goes, so that the same command
continues after any end, and any number of drivers may share the studies.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.samplers import TPESampler
from optuna.trial import Trial, TrialState

from identities import without_paths
from search_config import Limit, Search, Variant, is_finite, read_search
from search_server import ServerDied, TrialServer
from search_storage import (
    STORAGE_FAULTS,
    one_driver_at_a_time,
    open_storage,
    storage_words,
)
from search_study import (
    ALIVE_SECONDS,
    MOST_RETRIES,
    finished,
    give_up,
    hold_identity,
    mark_alive,
    mark_own,
    recover,
    trials_in,
)
from search_summary import duration, print_summary, study_words
from text_records import InputError
from tool_ends import run_tool, say
from yaml_reader import as_argument

EXIT_FAILED, EXIT_BAD_INPUT, EXIT_STOPPED = 1, 2, 3
MOST_FAILURES = 3
NO_FIGURES = ("event", "ranks", "identity", "settings")
ROOT = Path(__file__).resolve().parents[1]

DESCRIPTION = """\
Search the hyperparameters of a run with Optuna (TPE). CONFIG is YAML:

  config: configs/demo/mudman.yaml          # the run
  parameters:                               # what is searched
    unlearn.adv_lr: {low: 0.03, high: 3, log: true}
    unlearn.fork_every_n_loops: {low: 6, high: 42, int: true}
  overrides: {evaluate.batches: 2}          # of the run's config, for all trials
  variants:                                 # each is a study; without: one
    mudman:
    no_adversary:
      overrides: {unlearn.train_adversary: false}
      parameters: {unlearn.adv_lr: null, unlearn.fork_every_n_loops: {high: 20}}
  objective: score                          # a figure of the result
  direction: maximize
  pruning: {accuracy_mmlu: {below: 0.2873}} # while unlearning; above: too
  last: 30                                  # completed trials in the mean
  baseline: true                            # one trial of relearning only first

A trial that the program rejects (unlearn.retain_loss_budget, a loss that is not finite)
is recorded as pruned, with the reason. A trial whose server dies is tried again, twice.
Warnings name parameters whose best value lies within 10 % of an end of its range.

To continue after any end, or with more trials, give the same command again.
"""

EPILOG = """\
examples:
  search.py configs/demo-search.yaml --trials 40
  search.py my.yaml --trials 500 --server 'mpirun -n 4 --bind-to none mudman-mpi'

  # sixteen drivers on the same studies, one GPU each: a Slurm job array
  sbatch slurm/search-array.sbatch

storage: SQLite (the default) is for one machine: on file systems shared between machines its
locks are not reliable. There use journal:PATH (a file that is only appended to) or a database
server: postgresql://user@host/name. A storage that fails in mid-search (a full disk) ends it with
status 1; nothing that was stored is lost, and the same command continues.

exit status: 0 done; 2 bad input or arguments, with one line that says where; 3 stopped by a
signal, the running trial is queued again; 1 anything else
"""


class Stopped(Exception):
    """SIGTERM, SIGINT or SIGUSR1 came."""


class Evaluations:
    """What a running trial has shown: stored for Optuna, and held against the limits.

    An evaluation beyond the budget of divergence is not: the program goes back to the state before.
    """

    def __init__(
        self, trial: Trial, figure: str, limits: Sequence[Limit], kl_budget: float | None = None
    ):
        self._trial, self._figure, self._limits = trial, figure, limits
        self._kl_budget = kl_budget
        self._reported: set[int] = set()
        self.start()

    def start(self) -> None:
        """A try begins; what an earlier one reported to Optuna stays."""
        self.lines: list[dict[str, Any]] = []
        self.broken: str | None = None
        self._unlearned = 0

    def see(self, event: dict[str, Any]) -> bool:
        """Take an evaluation; True if the trial should end. Steps are passes from the start."""
        self.lines.append({k: v for k, v in event.items() if k not in ("event", "id")})
        unlearning = event["at"] != "relearn"
        step = event["passes"] + (0 if unlearning else self._unlearned)
        if unlearning:
            self._unlearned = step
            taken_back = self._kl_budget is not None and (event.get("kl") or 0) > self._kl_budget
            reasons = (limit.broken_by(event) for limit in self._limits if not taken_back)
            self.broken = self.broken or next(filter(None, reasons), None)
        value = event.get(self._figure)
        if is_finite(value) and step not in self._reported:
            self._trial.report(value, step)
            self._reported.add(step)
        return self.broken is not None


class Driver:
    """One process that runs trials of all variants until each has enough."""

    def __init__(self, search: Search, options: argparse.Namespace):
        self._search, self._options = search, options
        self._server: TrialServer | None = None
        self._running: Trial | None = None
        self._marked = 0.0
        self._signalled = False
        self._failures = 0
        with one_driver_at_a_time(options.storage):
            storage = open_storage(options.storage)
            self.studies = {
                variant.name: self._open_study(storage, variant) for variant in search.variants
            }

    def _open_study(self, storage: Any, variant: Variant) -> optuna.Study:
        name = self._search.study_name(variant)
        study = optuna.create_study(
            storage=storage,
            study_name=name,
            direction=self._search.direction,
            sampler=TPESampler(multivariate=False),
            load_if_exists=True,
        )
        settings = json.loads(json.dumps(self._search.settings(variant)))
        before = study.user_attrs.get("settings")
        if before is None:
            about = {
                "search": str(self._search.path),
                "config": self._search.config,
                "variant": variant.name,
                "parameters": settings["parameters"],
                "objective": self._search.objective,
                "last": self._search.last,
                "settings": settings,
            }
            for key, value in about.items():
                study.set_user_attr(key, value)
        # Once a study has hashes of its inputs, their places may change.
        plain = without_paths if "base_identity" in study.user_attrs else lambda value: value
        for key, value in settings.items():
            if before is not None and plain(before.get(key)) != plain(value):
                raise InputError(
                    f"{self._search.path}: {key}: differs from when the study {name} began; its "
                    "trials would not compare: choose another --study, or put it back"
                )
        return study

    def stop_soon(self, *_: object) -> None:
        """The signal handler: the next tick ends the search."""
        self._signalled = True

    def _tick(self) -> None:
        if self._signalled:
            raise Stopped
        if self._running and time.monotonic() - self._marked > ALIVE_SECONDS:
            mark_alive(self._running)
            self._marked = time.monotonic()

    def run(self) -> None:
        """Run trials until every study has enough; leaves no server and no trial behind."""
        study = None
        try:
            self._with_server(lambda _: None)
            if self._search.baseline:
                self._run_baselines()
            self._started, self._had = time.monotonic(), self._done()
            while (started := self._start_trial()) is not None:
                variant, study, self._running = started
                self._run_trial(variant, study, self._running)
                self._running = None
            if self._server:
                self._server.close()
                self._server = None
        finally:
            if self._server:
                self._server.stop()
            for trial in trials_in(study, TrialState.RUNNING) if self._running else ():
                if trial.number == self._running.number:
                    give_up(study, trial, "stopped", blame=False)

    def _done(self) -> int:
        return sum(len(finished(study)) for study in self.studies.values())

    def _start_trial(self) -> tuple[Variant, optuna.Study, Trial] | None:
        """Start a trial of the variant that has the fewest; None when all have enough."""
        self._tick()
        with one_driver_at_a_time(self._options.storage):
            counts = []
            for variant in self._search.variants:
                study = self.studies[variant.name]
                recover(study)
                running = trials_in(study, TrialState.RUNNING)
                counts.append(len(finished(study)) + len(running))
            if min(counts) >= self._options.trials:
                return None
            variant = self._search.variants[counts.index(min(counts))]
            study = self.studies[variant.name]
            trial = study.ask()
            mark_own(trial)
            self._marked = time.monotonic()
            self._suggest(variant, study, trial)
        return variant, study, trial

    def _suggest(self, variant: Variant, study: optuna.Study, trial: Trial) -> None:
        """Choose the parameters. A seed and the trial's number decide its random numbers, so that
        a continued search is the same as one at a stretch, and drivers do not repeat each other."""
        if self._options.seed is not None:
            numbers = np.random.SeedSequence([self._options.seed, trial.number])
            seed = int(numbers.generate_state(1)[0])
            study.sampler = TPESampler(multivariate=False, seed=seed)
        for name, bounds in variant.parameters.items():
            if bounds.integer:
                trial.suggest_int(name, int(bounds.low), int(bounds.high), log=bounds.log)
            else:
                trial.suggest_float(name, bounds.low, bounds.high, log=bounds.log)

    def _run_trial(self, variant: Variant, study: optuna.Study, trial: Trial) -> None:
        objective = self._search.objective
        figure = "forget_loss" if objective == "score" else objective
        overrides = variant.overrides | trial.params
        budget = self._search.kl_budget(overrides)
        evaluations = Evaluations(trial, figure, self._search.pruning, budget)
        request = {"id": f"{study.study_name}/{trial.number}", "overrides": overrides}

        def attempt(server: TrialServer) -> dict[str, Any]:
            evaluations.start()
            return server.run_trial(request, evaluations.see)

        began = time.monotonic()
        try:
            result = self._with_server(attempt)
        except ServerDied as died:
            result = {"status": "died", "reason": f"the trial server ended: {died}"}
        result.setdefault("seconds", time.monotonic() - began)
        if evaluations.broken and result["status"] in ("done", "pruned"):
            result |= {"status": "pruned", "reason": evaluations.broken}
        self._record(variant, study, trial, result, evaluations.lines)

    def _record(
        self,
        variant: Variant,
        study: optuna.Study,
        trial: Trial,
        result: dict[str, Any],
        evaluations: list[dict[str, Any]],
    ) -> None:
        status, reason = result["status"], result.get("reason", "")
        value = result.get(self._search.objective)
        if status == "done" and self._search.objective not in result:
            status, reason = "error", f"objective: a result has no {self._search.objective}"
        elif status == "done" and not is_finite(value):
            status = result["status"] = "pruned"
            reason = result["reason"] = f"{self._search.objective} is not finite"
        failed = status not in ("done", "rejected", "pruned")
        try:
            for key, attribute in result.items():
                if key not in ("event", "id"):
                    trial.set_user_attr(key, attribute)
            trial.set_user_attr("evaluations", evaluations)
            if status == "done":
                study.tell(trial, value)
            else:
                study.tell(trial, state=TrialState.FAIL if failed else TrialState.PRUNED)
        except (ValueError, UpdateFinishedTrialError):
            reason = "given up by another driver, which took this one for dead"
        if status == "error":
            raise InputError(f"{self._search.path}: variant {variant.name}: {reason}")
        self._failures = self._failures + 1 if failed else 0
        outcome = f"{value:.4f}" if status == "done" else f"{status} ({reason})"
        statistics = study_words(self._search, study)
        say(f"{self._progress(variant, study)}: {outcome}; {statistics}")
        if self._failures == MOST_FAILURES:
            raise ServerDied(f"{MOST_FAILURES} trials in a row failed: {reason}")

    def _with_server(self, attempt: Callable[[TrialServer], Any]) -> Any:
        """Give the server to a function; if it dies, start it again and repeat, twice at most."""
        for left in range(MOST_RETRIES, -1, -1):
            try:
                if self._server is None:
                    self._start_server()
                return attempt(self._server)
            except ServerDied as died:
                self._server = None
                self._tick()
                if left == 0:
                    raise
                print(f"search.py: the trial server ended: {died}: again", file=sys.stderr)

    def _start_server(self) -> None:
        overrides = [f"{k}={as_argument(v)}" for k, v in self._search.overrides.items()]
        command = [*self._options.server, "trials", self._search.config, *overrides]
        self._server = TrialServer(command, self._tick)
        ready = self._server.wait_ready()
        for limit in self._search.pruning:
            if limit.figure not in ready:
                raise InputError(
                    f"{self._search.path}: pruning.{limit.figure}: not evaluated; there are "
                    + ", ".join(figure for figure in ready if figure not in NO_FIGURES)
                )
        with one_driver_at_a_time(self._options.storage):
            for study in self.studies.values():
                for remark in hold_identity(study, ready):
                    print(f"search.py: warning: {remark}", file=sys.stderr)
        for study in self.studies.values():
            for figure in ready:
                if figure not in NO_FIGURES and f"baseline_{figure}" not in study.user_attrs:
                    study.set_user_attr(f"baseline_{figure}", ready[figure])

    def _run_baselines(self) -> None:
        """Relearning alone, once for all variants that attack and evaluate alike."""
        known: dict[str, float] = {}
        for variant in self._search.variants:
            study = self.studies[variant.name]
            rest = {k: v for k, v in variant.overrides.items() if not k.startswith("unlearn.")}
            key = json.dumps(rest, sort_keys=True)
            if "baseline_score" in study.user_attrs:
                known[key] = study.user_attrs["baseline_score"]
                continue
            if key not in known:
                known[key] = self._run_baseline(rest)
            study.set_user_attr("baseline_score", known[key])

    def _run_baseline(self, overrides: dict[str, Any]) -> float:
        request = {"id": "baseline", "overrides": overrides | {"unlearn.loops": 0}}
        result = self._with_server(lambda server: server.run_trial(request, lambda _: False))
        value = result.get(self._search.objective)
        if result["status"] != "done" or not is_finite(value):
            raise InputError(f"{self._search.path}: baseline: {result.get('reason') or 'no score'}")
        say(f"relearning only: {value:.4f}")
        return value

    def _progress(self, variant: Variant, study: optuna.Study) -> str:
        """How far this study is, and the search as a whole, its other drivers included."""
        done, hours = self._done() - self._had, (time.monotonic() - self._started) / 3600
        left = sum(max(0, self._options.trials - len(finished(s))) for s in self.studies.values())
        words = f"{variant.name} {len(finished(study))}/{self._options.trials}"
        if done:
            words += f" [{done / hours:.0f} trials/h, {duration(left * hours / done)} left]"
        return words


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="search.py",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("config", type=Path, metavar="CONFIG", help="the search, YAML")
    add(
        "--trials",
        type=int,
        required=True,
        metavar="N",
        help="trials of each variant in total, done or pruned, earlier ones included",
    )
    add(
        "--variant",
        action="append",
        metavar="NAME",
        help="only this variant; repeatable (default: all, in turn)",
    )
    add("--study", metavar="NAME", help="instead of the file's name; studies are NAME-VARIANT")
    add(
        "--storage",
        metavar="URL",
        help="where trials are kept: journal:PATH or a database's URL (default "
        "sqlite:///runs/search/NAME.db)",
    )
    add(
        "--server",
        type=shlex.split,
        metavar="COMMAND",
        help="what starts the program, before `trials CONFIG` (default: mudman-mpi as built here, "
        "else as installed)",
    )
    add(
        "--seed",
        type=int,
        metavar="N",
        help="of the sampler: one driver repeats its search; several depend on their timing too",
    )
    options = parser.parse_args(arguments)
    if options.trials < 1:
        parser.error("--trials must be at least 1")
    if options.seed is not None and options.seed < 0:
        parser.error("--seed must not be negative")
    if not options.server:
        built = ROOT / "build" / "mudman-mpi"
        options.server = [
            str(built) if built.is_file() else shutil.which("mudman-mpi") or built.name
        ]
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    options = parse_arguments(arguments)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        search = read_search(options.config, options.study, options.variant)
        options.storage = options.storage or f"sqlite:///runs/search/{search.name}.db"
        driver = Driver(search, options)
        listen(driver)
        driver.run()
        print_summary(search, driver.studies)
    except InputError as error:
        return _end(EXIT_BAD_INPUT, str(error))
    except Stopped:
        return _end(EXIT_STOPPED, "stopped; the same command continues")
    except ServerDied as died:
        return _end(EXIT_FAILED, f"the trial server: {died}")
    except STORAGE_FAULTS as error:
        return _end(
            EXIT_FAILED,
            f"{storage_words(error)}; finished trials are kept: when that is mended, the same "
            f"command continues (--storage {options.storage})",
        )
    return 0


def listen(driver: Driver) -> None:
    """Signals stop the search in order; SIGHUP unless it is ignored, as by nohup."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, driver.stop_soon)


def _end(status: int, message: str) -> int:
    # A message may quote the input; it stays one line all the same.
    print(f"search.py: {' '.join(message.split())}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(run_tool("search.py", main))
