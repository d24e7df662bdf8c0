"""Write a study's report as one HTML file that opens offline: no script, no link, images embedded."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

from lit_vision.results.tables import Table
from lit_vision.study.report_content import PICTURE_TITLE, Answer, Content, Section

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


def to_html(content: Content) -> str:
    """Return the report as an HTML page; all text from the folder (class and file names) is escaped."""
    sections = "\n".join(_section(section) for section in content.sections)
    facts = "\n".join(f"<li>{escape(fact)}</li>" for fact in content.facts)
    points = "\n".join(f"<li>{_keep_numbers(point)}</li>" for point in content.points)
    further = f"<h2>With fewer labels</h2>\n{_answers(content.answers[1:])}" if content.answers[1:] else ""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{escape(content.title)}</title>
<style>{_STYLE}</style>
</head>
<body><main>
<h1>{escape(content.title)}</h1>
<p class="lead">{escape(content.advice)}</p>
{_answers(content.answers[:1])}
<div class="first">
{_picture(PICTURE_TITLE, content.picture) if content.picture else ""}
<ul class="points">
{points}
</ul>
</div>
{further}
<h2>All results</h2>
{_table(content.table)}
<p class="faint">{escape(content.about)}</p>
{sections}
<h2>How it was made</h2>
<ul class="facts">
{facts}
</ul>
<footer class="faint">{escape(content.footer)}</footer>
</main></body>
</html>
"""


def _answers(answers: Sequence[Answer]) -> str:
    items = "\n".join(
        f'<li class="{answer.answer}"><b>{escape(answer.title)}</b>{_keep_numbers(_without_title(answer))}</li>'
        for answer in answers
    )
    return f'<ul class="answers">\n{items}\n</ul>'


def _picture(title: str, path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<figure><img alt="{escape(title)}" src="data:image/png;base64,{data}"></figure>'


def _section(section: Section) -> str:
    parts = [f"<h2>{escape(section.title)}</h2>"]
    if section.text:
        parts.append(f"<p>{escape(section.text)}</p>")
    if section.picture:
        parts.append(_picture(section.title, section.picture))
    if section.table:
        parts.append(_table(section.table))
    return "\n".join(parts)


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in table.columns)
    rows = "\n".join("<tr>" + "".join(_cell(cell) for cell in row) + "</tr>" for row in table.rows)
    note = f'<p class="faint">{escape(table.note)}</p>' if table.note else ""
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>{note}'


def _cell(cell: str) -> str:
    kind = ' class="not"' if cell.startswith("not ") else ""
    return f"<td{kind}>{_keep_numbers(cell)}</td>"


def _keep_numbers(text: str) -> str:
    """Escape a text, and keep each number on the line of its unit."""
    return escape(_NUMBER.sub(lambda match: match[0].replace(" ", "\N{NO-BREAK SPACE}"), text))


def _without_title(answer: Answer) -> str:
    """Return the text of an answer without the title that is printed above it."""
    return answer.text.removeprefix(f"{answer.title}: ")
