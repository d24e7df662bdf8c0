"""What a report says, before it becomes Markdown or HTML: all of it from results and cells."""

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
    """One verdict: a head ("With 80 labels"), its text, and how it ended ("wins", "loses", "open")."""

    head: str
    text: str
    answer: str


@dataclass(frozen=True)
class Section:
    """A heading with any of: a paragraph, a picture, a table, plain text."""

    title: str
    text: str = ""
    picture: Path | None = None
    table: Table | None = None
    plain: str = ""


@dataclass(frozen=True)
class Content:
    """A whole report, in the order in which it is read."""

    title: str
    advice: str
    answers: list[Answer]
    about: str
    table: Table
    sections: list[Section] = field(default_factory=list)
    facts: list[str] = field(default_factory=list)
    footer: str = ""


def collect_answers(found: Sequence[Verdict]) -> list[Answer]:
    """The verdicts as a reader meets them."""
    return [Answer(f"With {v.labels} labels", sentence(v), v.answer) for v in found]


def recommendation(found: Sequence[Verdict], pretrain_seconds: Mapping[str, float]) -> str:
    """What to do on this folder, in one or two sentences, from the most labels down."""
    if not found:
        return "There is nothing to compare yet."
    kinds = {v.answer for v in found}
    last = found[-1]
    if kinds == {"wins"}:
        ways = list(dict.fromkeys(_action(v) for v in found))
        how = ways[0] if len(ways) == 1 else "; ".join(f"with {v.labels} labels {_action(v)}" for v in found)
        took = [
            f"{init} {format_duration(pretrain_seconds.get(init, 0))}" for init in {v.best["init"]: None for v in found}
        ]
        return f"Pre-train on your own images: within this budget it beats every baseline at each number of labels. Then {how}. Pre-training took: {', '.join(took)}."
    if kinds == {"loses"}:
        return f"Do not pre-train within this budget: {last.best_baseline['init']} with {last.best_baseline['protocol']} is better at each number of labels."
    if kinds == {"open"}:
        few = last.reason.endswith(TOO_FEW_TESTS)
        mend = "Label more images to test on" if few else "Label more images, or give the study more seeds and time"
        return f"No claim can be made: {last.reason}. {mend}."
    parts = []
    for v in found:
        what = {"wins": "pre-training pays", "loses": "it does not", "open": "it is open"}[v.answer]
        parts.append(f"with {v.labels} labels {what}")
    return "It depends on the labels: " + ", ".join(parts) + "."


def _action(verdict: Verdict) -> str:
    init = verdict.best["init"]
    return f"put a linear probe on {init}" if verdict.best["protocol"] == PROBED else f"fine-tune {init}"


def report_markdown(content: Content, folder: Path) -> str:
    """The report as Markdown; pictures are linked relative to `folder`."""
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
    """Text that came from outside, harmless in Markdown: no HTML, no links, no emphasis."""
    text = " ".join(str(text).split()).replace("\\", "\\\\")
    for sign in "`*[]":
        text = text.replace(sign, "\\" + sign)
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
