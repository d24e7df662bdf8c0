"""Parts of a report as one HTML file that opens offline: no script, no link, images embedded; all text is escaped."""

from __future__ import annotations

import base64
import re
from html import escape
from pathlib import Path

from lit_vision.results.tables import Table

_NUMBER = re.compile(r"[+-]?[\d.]+(?: ± [\d.]+)?(?: %)?")  # a number with its unit, kept on one line

_STYLE = """
:root { --ink: #222; --faint: #666; --rule: #ddd; --better: #0b7a55; --less: #666; }
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: #fff; font: 16px/1.55 system-ui, -apple-system,
  "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 860px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 1.75rem; line-height: 1.25; margin: 0 0 .3em; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.2em 0 .5em; }
.lead { font-size: 1.15rem; margin: .2em 0 1.2em; }
.answers { display: grid; gap: 10px; padding: 0; list-style: none; margin: 0 0 1.2em; }
.answers li { border-left: 5px solid var(--less); background: #f7f7f7; padding: 10px 14px; overflow-wrap: anywhere; }
.answers li.better { border-color: var(--better); }
.answers b { display: block; font-size: .8rem; color: var(--faint); }
.faint { color: var(--faint); font-size: .92rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .88rem; }
th, td { text-align: left; padding: 6px 10px 6px 0; border-bottom: 1px solid var(--rule);
  vertical-align: top; white-space: nowrap; }
th { border-bottom: 2px solid var(--ink); }
td:last-child, th:last-child { padding-right: 0; }
td.not { color: var(--faint); font-style: italic; }
figure { margin: 0; }
img { max-width: 100%; height: auto; display: block; }
.first { display: grid; grid-template-columns: minmax(0, 5fr) minmax(0, 3fr); gap: 20px; align-items: center; }
.points { padding: 0; margin: 0; list-style: none; }
.points li { border-top: 1px solid var(--rule); padding: 10px 0; overflow-wrap: anywhere; }
.points li:first-child { border-top: none; }
ul.facts { padding-left: 1.1em; }
ul.facts li { overflow-wrap: anywhere; }
footer { margin-top: 3em; border-top: 1px solid var(--rule); padding-top: 1em; }
@media (max-width: 640px) { body { font-size: 15px; } main { padding: 18px 14px 40px; } h1 { font-size: 1.4rem; }
  .first { grid-template-columns: minmax(0, 1fr); }
  table { font-size: .8rem; } th, td { white-space: normal; padding-right: 8px; }
  td:first-child { overflow-wrap: anywhere; min-width: 6.5em; } }
@media print { main { max-width: none; padding: 0; } h2, figure, tr, .answers li { break-inside: avoid; }
  h2 { break-after: avoid; }
  .answers li { background: none; } .scroll { overflow: visible; } }
"""


def html_page(title: str, body: str, style: str = _STYLE) -> str:
    """Return a page with this title and style sheet around the HTML of its body."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{escape(title)}</title>
<style>{style}</style>
</head>
<body><main>
{body}
</main></body>
</html>
"""


def html_picture(title: str, path: Path) -> str:
    """Return a PNG file, embedded."""
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<figure><img alt="{escape(title)}" src="data:image/png;base64,{data}"></figure>'


def html_table(table: Table) -> str:
    """Return a table that scrolls sideways where it is too wide, with its note below."""
    head = "".join(f"<th>{escape(column)}</th>" for column in table.columns)
    rows = "\n".join("<tr>" + "".join(_cell(cell) for cell in row) + "</tr>" for row in table.rows)
    note = f'<p class="faint">{escape(table.note)}</p>' if table.note else ""
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>{note}'


def html_text(text: str) -> str:
    """Return an escaped text that keeps each number on the line of its unit."""
    return escape(_NUMBER.sub(lambda match: match[0].replace(" ", "\N{NO-BREAK SPACE}"), text))


def _cell(cell: str) -> str:
    kind = ' class="not"' if cell.startswith("not ") else ""
    return f"<td{kind}>{html_text(cell)}</td>"
