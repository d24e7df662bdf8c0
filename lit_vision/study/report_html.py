"""Write a study's report as one HTML file that opens offline: no script, no link, images embedded."""

from __future__ import annotations

import base64
import re
from html import escape
from pathlib import Path

from lit_vision.results.tables import Table
from lit_vision.study.report_content import Answer, Content, Section

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
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .95rem; }
th, td { text-align: left; padding: 6px 14px 6px 0; border-bottom: 1px solid var(--rule);
  vertical-align: top; white-space: nowrap; }
th { border-bottom: 2px solid var(--ink); }
td:last-child, th:last-child { padding-right: 0; }
td.not { color: var(--faint); font-style: italic; }
figure { margin: 0; }
img { max-width: 100%; height: auto; display: block; }
pre { overflow-x: auto; background: #f7f7f7; padding: 12px; font-size: .85rem; line-height: 1.4; }
ul.facts { padding-left: 1.1em; }
ul.facts li { overflow-wrap: anywhere; }
footer { margin-top: 3em; border-top: 1px solid var(--rule); padding-top: 1em; }
@media (max-width: 520px) { body { font-size: 15px; } main { padding: 18px 14px 40px; } h1 { font-size: 1.4rem; }
  table { font-size: .8rem; } th, td { white-space: normal; padding-right: 8px; }
  td:first-child { overflow-wrap: anywhere; } }
@media print { main { max-width: none; padding: 0; } h2, figure, tr, .answers li { break-inside: avoid; }
  h2 { break-after: avoid; }
  .answers li { background: none; } .scroll { overflow: visible; } }
"""


def to_html(content: Content) -> str:
    """Return the report as an HTML page; all text from the folder (class and file names) is escaped."""
    answers = "\n".join(
        f'<li class="{answer.answer}"><b>{escape(answer.title)}</b>{escape(_without_title(answer))}</li>'
        for answer in content.answers
    )
    sections = "\n".join(_section(section) for section in content.sections)
    facts = "\n".join(f"<li>{escape(fact)}</li>" for fact in content.facts)
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
<ul class="answers">
{answers}
</ul>
<p class="faint">{escape(content.about)}</p>
<h2>Accuracy</h2>
{_table(content.table)}
{sections}
<h2>How it was made</h2>
<ul class="facts">
{facts}
</ul>
<footer class="faint">{escape(content.footer)}</footer>
</main></body>
</html>
"""


def _section(section: Section) -> str:
    parts = [f"<h2>{escape(section.title)}</h2>"]
    if section.text:
        parts.append(f"<p>{escape(section.text)}</p>")
    if section.picture:
        data = base64.b64encode(Path(section.picture).read_bytes()).decode()
        parts.append(f'<figure><img alt="{escape(section.title)}" src="data:image/png;base64,{data}"></figure>')
    if section.table:
        parts.append(_table(section.table))
    if section.plain:
        parts.append(f"<pre>{escape(section.plain)}</pre>")
    return "\n".join(parts)


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in table.columns)
    rows = "\n".join("<tr>" + "".join(_cell(cell) for cell in row) + "</tr>" for row in table.rows)
    note = f'<p class="faint">{escape(table.note)}</p>' if table.note else ""
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>{note}'


def _cell(cell: str) -> str:
    kind = ' class="not"' if cell.startswith("not ") else ""
    text = _NUMBER.sub(lambda match: match[0].replace(" ", "\N{NO-BREAK SPACE}"), cell)
    return f"<td{kind}>{escape(text)}</td>"


def _without_title(answer: Answer) -> str:
    """Return the text of an answer without the title that is printed above it."""
    text = answer.text.removeprefix(f"{answer.title}: ")
    return text[:1].upper() + text[1:]
