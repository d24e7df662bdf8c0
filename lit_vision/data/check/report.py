"""Text of a folder check's report: the table for the terminal and the list for data.quarantine."""

from __future__ import annotations

from typing import Any

_EXAMPLES = 5  # files shown per finding; doctor.json lists all of them


def format_report(report: dict[str, Any]) -> str:
    """Return the report of `check_folder` as a table for the terminal."""
    lines = list(report["inventory"])
    for finding in report["findings"]:
        lines.append(f"{finding['level']}  {finding['count']:>7}  {finding['what']}")
        lines += [f"{'':15}{file}" for file in finding["files"][:_EXAMPLES]]
        if len(finding["files"]) > _EXAMPLES:
            lines.append(f"{'':15}and {len(finding['files']) - _EXAMPLES} more")
    for split, counts in report["classes"].items():
        sizes = sorted(counts.values())
        lines.append(
            f"{split}: {sum(sizes)} images in {len(sizes)} classes, {sizes[0]} to {sizes[-1]} each, "
            f"median {sizes[len(sizes) // 2]}"
        )
    return "\n".join(lines or ["nothing to report"])


def format_verdict(report: dict[str, Any]) -> str:
    """Return what the folder is fit for, and why it is not fit for training on labels."""
    if not report["fit"]:
        return "NOT fit to train on, see FAIL above"
    uses = report["uses"]
    if not uses["training on labels"]:
        return "fit to train on"
    fit_for = " and ".join(use for use, reason in uses.items() if not reason)
    return f"fit for {fit_for} only; not for training on labels: {uses['training on labels']}"


def format_quarantine(report: dict[str, Any]) -> str:
    """Return the list for data.quarantine, each path below a comment with its reason."""
    lines = [f"# images of {report['root']} to leave out: data.quarantine"]
    for path, reason in report["quarantine"]:
        lines += ["# " + " ".join(reason.split()), path]
    return "\n".join(lines) + "\n"
