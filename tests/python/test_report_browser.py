"""A report in a real browser: pictures show, tables sort, nothing is fetched, nothing fails."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

import report
import report_studies
from browser import Browser, find_browser
from report_helpers import attack, result, unlearning, write_run

TRIALS = 500
PHONE = 390  # pixels wide
SPACE = {
    "unlearn.unlearning_rate": FloatDistribution(1e-5, 1e-1, log=True),
    "unlearn.fork_every_n_loops": IntDistribution(6, 42),
}
SCORES = (
    "Array.from(document.querySelectorAll('details table tbody tr'), r => r.cells[2].textContent)"
)
RECTANGLES = (
    "Array.from(document.images, i => {const r = i.getBoundingClientRect();"
    " return [i.complete, i.naturalWidth, r.x + scrollX, r.y + scrollY, r.width, r.height]})"
)
REFUSED = (
    "new Promise(done => {addEventListener('securitypolicyviolation', e => done(e.blockedURI));"
    " document.body.append(Object.assign(new Image(), {src: 'http://127.0.0.1:9/x.png'}))})"
)


def study() -> optuna.Study:
    """Trials of which every third was rejected."""
    made = optuna.create_study(study_name="tiny-mudman", direction="maximize")
    for key, value in {"variant": "mudman", "baseline_score": 2.5, "objective": "score"}.items():
        made.set_user_attr(key, value)
    draw = np.random.default_rng(1)
    for i in range(TRIALS):
        values = dict(zip(SPACE, (10 ** draw.uniform(-5, -1), int(draw.integers(6, 43)))))
        fate = {"value": float(draw.normal(3, 1))}
        if i % 3 == 0:
            fate = {"state": TrialState.PRUNED, "user_attrs": {"reason": "retain loss <9> & more"}}
        made.add_trial(create_trial(params=values, distributions=SPACE, **fate))
    return made


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of seeds, of several attacks and of a long search."""
    folder = tmp_path_factory.mktemp("report")
    attacks = [*attack(2.7, 4, attack="sgd"), *attack(1.7, 4, attack="adamw")]
    runs = [
        write_run(folder / f"run-{i}", [*unlearning(0.5 + i / 10), *attacks, result(1.5)], i)
        for i in (1, 2, 3)
    ]
    searched = report.search_section([report_studies.read_variant(study())], ["mudman"], None)
    report.write_report([report.runs_section(runs), searched], folder, "A report", "A test.")
    return folder / "report.html"


@pytest.fixture(scope="module")
def browser(page: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = find_browser()
    if not program:
        pytest.skip("no Chromium here")
    with Browser(program, tmp_path_factory.mktemp("profile")) as one:
        one.resize(1000, 800)
        one.open(page)
        yield one


def test_pictures_show(browser: Browser) -> None:
    """Each is decoded, and what is seen in its place is no even surface."""
    seen = browser.picture()
    places = browser.value(RECTANGLES)
    assert len(places) == 9
    for complete, natural, *box in places:
        x, y, width, height = (round(edge) for edge in box)
        part = seen[y : y + height, x : x + width]
        assert complete and natural > 1000 and part.shape[:2] == (height, width)
        shades = np.unique((part * 255) @ (1, 256, 65536))
        assert part.std() > 0.03 and len(shades) > 50


def test_trials_are_sorted_by_a_click(browser: Browser) -> None:
    """By value up, then down; trials without a score are last in both."""
    browser.value("document.querySelectorAll('details').forEach(d => d.open = true)")
    before = browser.value(SCORES)[-TRIALS:]
    numbers = sorted(float(score) for score in before if score != "–")
    assert 0 < len(numbers) < TRIALS and before[0] == "–"
    click = (
        "[...document.querySelectorAll('th button')].find(b => b.textContent == 'score').click()"
    )
    for wanted in (numbers, numbers[::-1]):
        browser.value(click)
        after = browser.value(SCORES)[-TRIALS:]
        assert [float(score) for score in after[: len(wanted)]] == wanted
        assert set(after[len(wanted) :]) == {"–"}
    assert "retain loss <9> & more" in browser.value("document.body.textContent")


def test_a_phone_scrolls_down_only(browser: Browser) -> None:
    """What is wider than the screen scrolls in a box of its own; the names of rows stay."""
    browser.resize(PHONE, 800, mobile=True)
    assert browser.value("document.documentElement.scrollWidth") <= PHONE
    assert browser.value("Math.min(...Array.from(document.images, i => i.width))") >= 400
    browser.value("document.querySelector('.wide').scrollLeft = 100")
    first = "document.querySelector('th[scope=row]').getBoundingClientRect().left"
    assert 0 <= browser.value(first) < PHONE / 4
    browser.resize(1000, 800)


def test_print(browser: Browser) -> None:
    """On paper nothing scrolls, and a folded table is left out."""
    browser.value("document.querySelectorAll('details').forEach(d => d.open = false)")
    browser.ask("Emulation.setEmulatedMedia", media="print")
    hidden = "[...document.querySelectorAll('details')].every(d => d.offsetHeight == 0)"
    assert browser.value(hidden)
    boxes = "[...document.querySelectorAll('.wide')].map(d => getComputedStyle(d).overflow)"
    assert set(browser.value(boxes)) == {"visible"}
    browser.ask("Emulation.setEmulatedMedia", media="")


def test_nothing_is_fetched_and_nothing_fails(browser: Browser, page: Path) -> None:
    """The page asks for itself alone; it would not get more, and errors would be seen."""
    assert browser.requests() == [page.resolve().as_uri()]
    assert browser.complaints() == []
    assert browser.value(REFUSED) == "http://127.0.0.1:9/x.png"
    assert any("127.0.0.1" in words for words in browser.complaints())
    browser.value("console.error('seen')")
    assert any("seen" in words for words in browser.complaints())
