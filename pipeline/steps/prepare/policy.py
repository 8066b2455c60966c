"""What is done about findings: refuse the data, drop images, or keep them."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.base.errors import DataError
from pipeline.parts.sources.listing import Finding
from pipeline.steps.prepare.gathered import Gathered

SHOWN = 3  # findings that an error names

# What each kind of finding is called in an error, and what to do.
WORDS = {
    "broken": ("file(s) that cannot be decoded", "replace or remove them"),
    "animated": ("file(s) with several pictures", "split them"),
    "unpaired": ("image(s) or label(s) without the other", "add what is missing"),
    "mask": ("mask(s) that do not fit", "mend them"),
    "names": (
        "name(s) that differ only in case or Unicode form, which some file systems cannot keep apart",
        "rename them",
    ),
    "copies": ("image(s) with two labels or in two splits", "keep one of each"),
    "near_copies": ("scene(s) in two splits, as near copies", "keep one of each"),
}

CHOICES = {"names": "keep", "near_copies": "drop, or to keep if they show different things"}  # drop for the others


@dataclass(frozen=True, slots=True)
class Outcome:
    """A finding, what was done about it ("dropped", "kept" or "ignored"), and the paths of the images that went."""

    finding: Finding
    action: str
    dropped: tuple[str, ...] = ()


def settle(found: Gathered, findings: Sequence[Finding], policy: Mapping[str, str]) -> tuple[Gathered, list[Outcome]]:
    """Applies the policy to findings.

    Args:
        found: all images.
        findings: whose rows are those of `found`.
        policy: "refuse", "drop" or "keep" by kind; kinds that are not there are ignored.

    Returns:
        The images that are left, and what was done.

    Raises:
        DataError: some findings are of a kind that is refused.
    """
    refused = [finding for finding in findings if policy.get(finding.kind) == "refuse"]
    if refused:
        raise DataError(_refusal(found, refused))
    kept = np.ones(len(found.items), bool)
    outcomes = []
    for finding in findings:
        action = {"drop": "dropped", "keep": "kept"}.get(policy.get(finding.kind, ""), "ignored")
        gone = finding.rows if action == "dropped" else ()
        kept[list(gone)] = False
        outcomes.append(Outcome(finding, action, found.paths(gone)))
    return found.only(kept), outcomes


def _refusal(found: Gathered, refused: Sequence[Finding]) -> str:
    kinds: dict[str, list[Finding]] = defaultdict(list)
    for finding in refused:
        kinds[finding.kind].append(finding)
    sentences = []
    for kind, findings in kinds.items():
        what, remedy = WORDS[kind]
        shown = "; ".join(f"{', '.join(map(repr, one.paths))} ({one.reason})" for one in findings[:SHOWN])
        more = f" and {len(findings) - SHOWN} more" if len(findings) > SHOWN else ""
        choice = CHOICES.get(kind, "drop")
        sentences.append(f"{len(findings)} {what}: {shown}{more}; {remedy}, or set `prepare.{kind}` to {choice}")
    return f"in {str(found.root)!r}: {'. '.join(sentences)}"
