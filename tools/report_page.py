"""The HTML page of a report: one file, images inside, nothing fetched.

A policy in the page forbids the browser to fetch anything, and to run any script but the one that
sorts long tables; without it they are read as they are.
"""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Sequence
from dataclasses import dataclass, field

from report_charts import Chart

STYLE = """\
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff;
       margin: 0 auto; max-width: 58rem; padding: 1rem; }
h1 { font-size: 1.5rem; line-height: 1.2; }
h2 { font-size: 1.25rem; margin-top: 2.5rem; border-bottom: 1px solid #ccc; }
h3 { font-size: 1rem; margin: 2rem 0 .5rem; }
p, li, figcaption { max-width: 44rem; }
figure { margin: 1.5rem 0; }
figure img { display: block; width: 100%; height: auto; }
figcaption, .caption { font-size: .875rem; color: #444; margin-top: .4rem; }
figcaption b { color: #222; }
.wide { overflow-x: auto; }
.wide img { min-width: 30rem; }
table { border-collapse: collapse; font-size: .8125rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; text-align: right; vertical-align: top;
         border-bottom: 1px solid #ddd; }
thead th { border-bottom: 2px solid #888; vertical-align: bottom; }
th:first-child, .text { text-align: left; }
th[scope=row] { white-space: nowrap; }
td { white-space: nowrap; }
details { margin: 1rem 0; }
summary { cursor: pointer; font-weight: bold; padding: .25rem 0; }
details .wide { max-height: 32rem; overflow: auto; }
details thead th { position: sticky; top: 0; background: #fff; }
th button { all: unset; cursor: pointer; white-space: nowrap; }
th button:focus-visible { outline: 2px solid #0072B2; }
th button::after { content: " \\2195"; color: #888; }
th[aria-sort=ascending] button::after { content: " \\2191"; color: #222; }
th[aria-sort=descending] button::after { content: " \\2193"; color: #222; }
td.text { white-space: normal; min-width: 6rem; max-width: 16rem; overflow-wrap: anywhere; }
.note { border-left: 3px solid #D55E00; padding-left: .75rem; }
.note p { margin: .25rem 0; overflow-wrap: anywhere; }
footer { margin-top: 3rem; font-size: .8125rem; color: #555; overflow-wrap: anywhere; }
@media (max-width: 40rem) { th, td { padding: .25rem .4rem; }
  th[scope=row] { position: sticky; left: 0; background: #fff; white-space: normal;
                  max-width: 7rem; overflow-wrap: break-word; } }
@media print { body { max-width: none; padding: 0; font-size: 10pt; } .wide { overflow: visible; }
  details .wide { max-height: none; overflow: visible; } details:not([open]) { display: none; }
  .wide img { min-width: 0; max-width: 6.3in; } figure, tr { break-inside: avoid; }
  h2, h3 { break-after: avoid; } table { break-inside: avoid; }
  table { font-size: 7.5pt; } th, td { padding: .15rem .3rem; }
  td { white-space: normal; } }
"""

# Sorts a table by the column whose head is clicked, then the other way round: numbers by value and
# before words, what is missing last either way.
SORT_SCRIPT = """\
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const head = button.parentElement, heads = head.parentElement.cells;
    const body = head.closest("table").tBodies[0];
    const down = head.getAttribute("aria-sort") === "ascending";
    for (const other of heads) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const rows = Array.from(body.rows, row => {
      const text = row.cells[head.cellIndex].textContent;
      const kind = text === "" || text === "–" ? 2 : isNaN(text) ? 1 : 0;
      return {row, text, kind};
    });
    rows.sort((a, b) => {
      const order = a.kind === 0 ? a.text - b.text : a.text.localeCompare(b.text);
      return a.kind - b.kind || (a.kind === 2 ? 0 : down ? -order : order);
    });
    body.append(...rows.map(one => one.row));
  });
}
"""

WHOLE = 18  # shorter cells are not broken


@dataclass
class Table:
    """Cells as shown; `text` are the columns that hold words and not numbers. A folded one is shown
    on a click; the columns of a sortable one sort it."""

    title: str
    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    text: frozenset[int] = frozenset()
    folded: bool = False
    sortable: bool = False


@dataclass
class Section:
    """A heading, remarks that must be seen, then tables and charts in their order."""

    title: str
    notes: list[str] = field(default_factory=list)
    parts: list[Table | Chart] = field(default_factory=list)


def head_html(table: Table, marks: Sequence[str]) -> str:
    """The row of heads."""
    cells = [html.escape(cell) for cell in table.head]
    if table.sortable:
        cells = [f'<button type="button">{cell}</button>' for cell in cells]
    heads = [f'<th scope="col"{mark}>{cell}</th>' for cell, mark in zip(cells, marks)]
    return f"<thead><tr>{''.join(heads)}</tr></thead>"


def cell_html(cell: str) -> str:
    """A cell; a number is not parted from its error or unit."""
    return html.escape(cell.replace(" ", "\u00a0") if len(cell) < WHOLE else cell)


def table_html(table: Table) -> str:
    """One table; wider than the screen, it scrolls by itself."""
    marks = [' class="text"' if column in table.text else "" for column in range(len(table.head))]
    title = html.escape(table.title)
    lines = [f"<details><summary>{title}</summary>" if table.folded else f"<h3>{title}</h3>"]
    caption = f'<p class="caption">{html.escape(table.caption)}</p>' if table.caption else ""
    if table.folded and caption:
        lines.append(caption)
    lines.append(f'<div class="wide"><table>{head_html(table, marks)}<tbody>')
    for row in table.rows:
        cells = [f'<th scope="row">{html.escape(row[0])}</th>']
        cells += [f"<td{mark}>{cell_html(cell)}</td>" for cell, mark in zip(row[1:], marks[1:])]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    lines.append("</tbody></table></div>")
    lines.append("</details>" if table.folded else caption)
    return "\n".join(lines)


def chart_html(chart: Chart) -> str:
    """One picture with its caption."""
    data = base64.b64encode(chart.png).decode("ascii")
    title, caption = html.escape(chart.title), html.escape(chart.caption)
    return (
        f'<figure><div class="wide"><img alt="{title}" src="data:image/png;base64,{data}"></div>\n'
        f"<figcaption><b>{title}.</b> {caption}</figcaption></figure>"
    )


def policy(script: str) -> str:
    """What the page allows the browser: its own style, images and script."""
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    rules = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    rules += f"; script-src 'sha256-{digest}'"
    return f'<meta http-equiv="Content-Security-Policy" content="{rules}">'


def page_html(title: str, sections: Sequence[Section], footer: str) -> str:
    """The whole page."""
    lines = ["<!DOCTYPE html>", '<html lang="en"><head><meta charset="utf-8">']
    lines.append(policy(SORT_SCRIPT))
    lines.append('<meta name="viewport" content="width=device-width, initial-scale=1">')
    lines.append(f"<title>{html.escape(title)}</title><style>\n{STYLE}</style></head><body>")
    lines.append(f"<h1>{html.escape(title)}</h1>")
    for section in sections:
        lines.append(f"<section><h2>{html.escape(section.title)}</h2>")
        if section.notes:
            notes = "".join(f"<p>{html.escape(note)}</p>" for note in section.notes)
            lines.append(f'<div class="note">{notes}</div>')
        for part in section.parts:
            lines.append(table_html(part) if isinstance(part, Table) else chart_html(part))
        lines.append("</section>")
    lines.append(f"<footer>{html.escape(footer)}</footer>")
    if any(isinstance(p, Table) and p.sortable for section in sections for p in section.parts):
        lines.append(f"<script>{SORT_SCRIPT}</script>")
    lines.append("</body></html>")
    return "\n".join(lines) + "\n"
