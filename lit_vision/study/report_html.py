"""Write a study's report as one HTML file that opens offline: no script, no link, images embedded."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from lit_vision.results.html_page import html_page, html_picture, html_table, html_text
from lit_vision.study.report_content import PICTURE_TITLE, Answer, Content, Section


def to_html(content: Content) -> str:
    """Return the report as an HTML page; all text from the folder (class and file names) is escaped."""
    sections = "\n".join(_section(section) for section in content.sections)
    facts = "\n".join(f"<li>{escape(fact)}</li>" for fact in content.facts)
    points = "\n".join(f"<li>{html_text(point)}</li>" for point in content.points)
    further = f"<h2>With fewer labels</h2>\n{_answers(content.answers[1:])}" if content.answers[1:] else ""
    body = f"""<h1>{escape(content.title)}</h1>
<p class="lead">{escape(content.advice)}</p>
{_answers(content.answers[:1])}
<div class="first">
{html_picture(PICTURE_TITLE, content.picture) if content.picture else ""}
<ul class="points">
{points}
</ul>
</div>
{further}
<h2>All results</h2>
{html_table(content.table)}
<p class="faint">{escape(content.about)}</p>
{sections}
<h2>How it was made</h2>
<ul class="facts">
{facts}
</ul>
<footer class="faint">{escape(content.footer)}</footer>"""
    return html_page(content.title, body)


def _answers(answers: Sequence[Answer]) -> str:
    items = "\n".join(
        f'<li class="{answer.answer}"><b>{escape(answer.title)}</b>{html_text(_without_title(answer))}</li>'
        for answer in answers
    )
    return f'<ul class="answers">\n{items}\n</ul>'


def _section(section: Section) -> str:
    parts = [f"<h2>{escape(section.title)}</h2>"]
    if section.text:
        parts.append(f"<p>{escape(section.text)}</p>")
    if section.picture:
        parts.append(html_picture(section.title, section.picture))
    if section.table:
        parts.append(html_table(section.table))
    return "\n".join(parts)


def _without_title(answer: Answer) -> str:
    """Return the text of an answer without the title that is printed above it."""
    return answer.text.removeprefix(f"{answer.title}: ")
