"""What a rule counts in a text: words, words of a list, or sentiment.

A word is a run of letters, digits and apostrophes; case is ignored. Sentiment needs the package
vaderSentiment, which is no dependency: where it is missing, `missing` names it. It knows nothing of
models.
"""

import importlib
import importlib.util
import re

from .rules import Rule

__all__ = ["count", "missing"]


def missing(rule: Rule) -> str | None:
    """Return the package that a rule needs and that is not installed, or None."""
    package = "vaderSentiment"
    absent = rule.kind == "sentiment" and importlib.util.find_spec(package) is None
    return package if absent else None


def count(rule: Rule, text: str) -> float:
    """Return what a rule counts in a text; whether more is more of the concept, its sign says.

    `length` is a number of words, `lexicon` the share of words that stand in the list (a phrase
    counts all of its words, none of them twice), `sentiment` is from -1 to 1.
    """
    if rule.kind == "sentiment":
        module = importlib.import_module("vaderSentiment.vaderSentiment")
        return float(module.SentimentIntensityAnalyzer().polarity_scores(text)["compound"])
    words = re.findall(r"[a-z0-9']+", text.lower().replace("\u2019", "'"))
    if rule.kind == "length":
        return float(len(words))
    known = {tuple(re.split("[ -]", entry)) for entry in rule.words}
    longest = max(map(len, known))
    hits = at = 0
    while at < len(words):
        sizes = range(min(longest, len(words) - at), 0, -1)
        size = next((n for n in sizes if tuple(words[at : at + n]) in known), 0)
        hits += size
        at += size or 1
    return hits / max(len(words), 1)
