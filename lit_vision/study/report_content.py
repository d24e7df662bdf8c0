"""Text of a study's report, from its results and cells, before it becomes Markdown or HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lit_vision.io.text import format_duration
from lit_vision.results.tables import Table, to_markdown
from lit_vision.study.metrics_of_cells import values_on_test
from lit_vision.study.presets import base_of, method_of
from lit_vision.study.verdict import FROZEN, Verdict, contender, sentence

PICTURE_TITLE = "Test results against labels"  # of the figure on the first screen


@dataclass(frozen=True)
class Answer:
    """Text of one verdict: a title ("With 80 labels"), a sentence, and the answer ("better" or "less")."""

    title: str
    text: str
    answer: str


@dataclass(frozen=True)
class Section:
    """Section of the report: a title and any of a paragraph, a figure, a table."""

    title: str
    text: str = ""
    picture: Path | None = None
    table: Table | None = None


@dataclass(frozen=True)
class Content:
    """Content of a report, in reading order.

    Attributes:
        title: question that the report answers.
        advice: what to do, in one sentence.
        answers: verdicts, the most labels first; the first stands above the picture, the others below it.
        picture: the figure of the first screen; None: it could not be made.
        points: sentences beside it: the cost, what more labels give, the second choice.
        about: images, machine and time.
        table: results of all contenders.
        sections: what follows.
        facts: how it was made, one sentence each.
        footer: how to read the numbers.
    """

    title: str
    advice: str
    answers: list[Answer]
    picture: Path | None
    points: list[str]
    about: str
    table: Table
    sections: list[Section] = field(default_factory=list)
    facts: list[str] = field(default_factory=list)
    footer: str = ""


def collect_answers(found: Sequence[Verdict]) -> list[Answer]:
    """Return the verdicts as titles and sentences, the most labels first."""
    return [
        Answer(f"With {v.labels} labels", f"{sentence(v)} {v.note}".strip(), "better" if v.winner else "less")
        for v in reversed(found)
    ]


def recommendation(found: Sequence[Verdict]) -> str:
    """Return what to do with these images, in one sentence."""
    if not found:
        return "There is nothing to compare yet."
    actions = {v.labels: _action(v.recommended) for v in found}
    if len(set(actions.values())) == 1:
        text = actions[found[-1].labels]
        return f"{text[0].upper()}{text[1:]}."
    groups: dict[str, list[int]] = {}
    for labels, action in actions.items():
        groups.setdefault(action, []).append(labels)
    parts = [f"with {', '.join(map(str, labels))} labels {action}" for action, labels in groups.items()]
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def _action(cell: Mapping[str, Any]) -> str:
    init, protocol = cell["init"], cell["protocol"]
    if init.startswith("scratch-"):
        return f"train {init} on your labels, without pre-training"
    before, features = "", init
    if method := method_of(init):
        base = base_of(init)
        before = f"go on pre-training {base} with {method}" if base else f"pre-train {init}"
        before, features = f"{before} on your own images, then ", "it"
    steps = {
        "logreg": f"fit logistic regression to the {features}",
        "linear": f"put a linear probe on {features}",
        "knn": f"take the class of the nearest neighbors by {features}",
        "finetune": f"fine-tune {features}",
    }
    return before + steps.get(protocol, f"train {features} with {protocol}")


def second_choice(verdict: Verdict) -> str:
    """Return a sentence about the second choice: its distance on the test split, and the time that it saves."""
    second, first = verdict.second, verdict.recommended
    if second is None:
        return ""
    own, its = (_mean(values_on_test(cell, verdict.metric)) for cell in (first, second))
    seconds = one_model_seconds(first) - one_model_seconds(second)
    if abs(seconds) < 1:
        saves = "it costs the same"
    elif seconds > 0:
        saves = f"it saves {format_duration(seconds)} a model"
    else:
        saves = f"it takes {format_duration(-seconds)} more a model"
    gap = f"{100 * abs(own - its):.1f} points {'lower' if its < own else 'higher'} on the test split"
    return f"Second choice with {verdict.labels} labels: {contender(second)}, {gap}; {saves}."


def model_cost(cell: Mapping[str, Any]) -> str:
    """Return a sentence about the training time of one model of a cell."""
    seconds, before = one_model_seconds(cell), cell["pretrain_seconds"]
    if cell["protocol"] in FROZEN and not before:
        return f"Cost: {contender(cell)} trains no network."
    share = f", of which {format_duration(before)} are pre-training without labels" if before else ""
    return f"Cost: {contender(cell)} takes {format_duration(seconds)} of training{share}."


def one_model_seconds(cell: Mapping[str, Any]) -> float:
    """Return the seconds of training that one model of a cell takes, its pre-training included."""
    return float(cell["pretrain_seconds"] + cell["seconds"] / len(cell["values"]))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def report_markdown(content: Content, folder: Path) -> str:
    """Return the report as Markdown; figures are linked relative to `folder`."""
    parts = [f"# {markdown(content.title)}\n", f"**{markdown(content.advice)}**\n"]
    parts += [f"- {markdown(answer.text)}" for answer in content.answers[:1]]
    parts += [f"- {markdown(point)}" for point in content.points]
    if content.picture:
        parts.append("\n" + _markdown_picture(PICTURE_TITLE, content.picture, folder))
    if len(content.answers) > 1:
        parts += ["## With fewer labels\n", *(f"- {markdown(answer.text)}" for answer in content.answers[1:])]
    parts.append(f"\n## All results\n\n{to_markdown(content.table)}\n{markdown(content.about)}\n")
    for section in content.sections:
        parts.append(f"## {markdown(section.title)}\n")
        if section.text:
            parts.append(markdown(section.text) + "\n")
        if section.picture:
            parts.append(_markdown_picture(section.title, section.picture, folder))
        if section.table:
            parts.append(to_markdown(section.table))
    parts.append("## How it was made\n")
    parts += [f"- {markdown(fact)}" for fact in content.facts]
    parts.append(f"\n{markdown(content.footer)}\n")
    return "\n".join(parts)


def _markdown_picture(title: str, picture: Path, folder: Path) -> str:
    return f"![{markdown(title)}]({picture.relative_to(folder).as_posix()})\n"


def markdown(text: Any) -> str:
    """Escape text from outside for Markdown: no HTML, no links, no emphasis."""
    escaped = " ".join(str(text).split()).replace("\\", "\\\\")
    for character in "`*[]":
        escaped = escaped.replace(character, "\\" + character)
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
