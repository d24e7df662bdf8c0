"""Text of a study's report, from its results and cells, before it becomes Markdown or HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lit_vision.io.text import format_duration
from lit_vision.results.tables import Table, to_markdown
from lit_vision.study.verdict import PROBED, TOO_FEW_TESTS, Verdict, sentence


@dataclass(frozen=True)
class Answer:
    """Text of one verdict: a title ("With 80 labels"), a sentence, and the answer ("wins", "loses" or "open")."""

    title: str
    text: str
    answer: str


@dataclass(frozen=True)
class Section:
    """Section of the report: a title and any of a paragraph, a figure, a table, preformatted text."""

    title: str
    text: str = ""
    picture: Path | None = None
    table: Table | None = None
    plain: str = ""


@dataclass(frozen=True)
class Content:
    """Content of a report, in reading order."""

    title: str
    advice: str
    answers: list[Answer]
    about: str
    table: Table
    sections: list[Section] = field(default_factory=list)
    facts: list[str] = field(default_factory=list)
    footer: str = ""


def collect_answers(found: Sequence[Verdict]) -> list[Answer]:
    """Return the verdicts as titles and sentences."""
    return [Answer(f"With {v.labels} labels", sentence(v), v.answer) for v in found]


def recommendation(found: Sequence[Verdict], pretrain_seconds: Mapping[str, float]) -> str:
    """Return a recommendation for this folder, in one or two sentences."""
    if not found:
        return "There is nothing to compare yet."
    kinds = {v.answer for v in found}
    last = found[-1]
    if kinds == {"wins"}:
        actions = list(dict.fromkeys(_action(v) for v in found))
        how = actions[0] if len(actions) == 1 else "; ".join(f"with {v.labels} labels {_action(v)}" for v in found)
        inits = dict.fromkeys(v.best["init"] for v in found if v.best)
        durations = ", ".join(f"{init} {format_duration(pretrain_seconds.get(init, 0))}" for init in inits)
        return (
            "Pre-train on your own images: within this budget it beats every baseline at each number of labels. "
            f"Then {how}. Pre-training took: {durations}."
        )
    if kinds == {"loses"}:
        baseline = f"{last.best_baseline['init']} with {last.best_baseline['protocol']}"
        return f"Do not pre-train within this budget: {baseline} is better at each number of labels."
    if kinds == {"open"}:
        few = last.reason.endswith(TOO_FEW_TESTS)
        remedy = "Label more images to test on" if few else "Label more images, or give the study more seeds and time"
        return f"No claim can be made: {last.reason}. {remedy}."
    parts = []
    for v in found:
        what = {"wins": "pre-training pays", "loses": "it does not", "open": "it is open"}[v.answer]
        parts.append(f"with {v.labels} labels {what}")
    return "It depends on the labels: " + ", ".join(parts) + "."


def _action(verdict: Verdict) -> str:
    cell = verdict.best or verdict.best_baseline
    return f"put a linear probe on {cell['init']}" if cell["protocol"] == PROBED else f"fine-tune {cell['init']}"


def report_markdown(content: Content, folder: Path) -> str:
    """Return the report as Markdown; figures are linked relative to `folder`."""
    parts = [f"# {markdown(content.title)}\n", f"**{markdown(content.advice)}**\n"]
    parts += [f"- {markdown(answer.text)}" for answer in content.answers]
    parts.append(f"\n{markdown(content.about)}\n")
    parts.append("## Accuracy\n\n" + to_markdown(content.table))
    for section in content.sections:
        parts.append(f"## {markdown(section.title)}\n")
        if section.text:
            parts.append(markdown(section.text) + "\n")
        if section.picture:
            parts.append(f"![{markdown(section.title)}]({section.picture.relative_to(folder).as_posix()})\n")
        if section.table:
            parts.append(to_markdown(section.table))
        if section.plain:
            plain = section.plain.replace("```", "'''")
            parts.append(f"```\n{plain}\n```\n")
    parts.append("## How it was made\n")
    parts += [f"- {markdown(fact)}" for fact in content.facts]
    parts.append(f"\n{markdown(content.footer)}\n")
    return "\n".join(parts)


def markdown(text: Any) -> str:
    """Escape text from outside for Markdown: no HTML, no links, no emphasis."""
    escaped = " ".join(str(text).split()).replace("\\", "\\\\")
    for character in "`*[]":
        escaped = escaped.replace(character, "\\" + character)
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
