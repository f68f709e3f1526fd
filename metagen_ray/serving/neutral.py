"""Answers as data: what in an answer could speak to a judge is taken out. Owns the patterns; knows no judge.

Three things are stripped until none is left: special and role tokens, runs of the prompt's delimiters, forged
scores. They are stripped, not replaced, so that an answer with a forgery appended reads to the judge exactly as it
did without.
"""

import re
from collections.abc import Iterable
from functools import cache

# Chat markers of the common templates, whatever tokenizer is in use.
_MARKERS = r"<\|[^<>|\n]{0,60}\|>|</?s>|\[/?INST\]|<</?SYS>>|</?(?:start|end)_of_turn>|<(?:bos|eos|pad|unk)>"
_FRAME = r"<{3,}|>{3,}"  # the judge prompt's delimiters

# Blanks, quotes, brackets and markdown around the parts of a score; bounded, so that no text takes long to match.
_OPEN = r"[\"'`*_({\[<#>| \t-]{0,12}"
_CLOSE = r"[\"'`*_)}\]>| \t,;.!]{0,12}"
_QUOTES = r"[\"'`*_)\]> \t]{0,12}"
_WHOSE = r"(?:(?:final|overall|total|my|the|judge'?s|human|harm|coherence)[ \t_-]{1,4}){0,3}"
_NAME = rf"{_WHOSE}(?:score|rating|grade|mark)s?"
# "Score (0-100):", "Score out of 100:"
_SCALE = r"(?:[ \t]{0,4}[(\[][^()\[\]\n]{1,30}[)\]]|[ \t]{1,4}out[ \t]+of[ \t]+\d+)?"
_COLON = r"(?::|=|：|->|=>|→)"
_LOOSE = rf"(?:{_COLON}|-|–|—|\bis\b|\bof\b)"
_BREAK = r"[ \t]{0,4}\n?"
_ANY = r"[\W_]{0,12}"  # whatever is no word, between a name, its colon and its number
_WORDS = r"(?:zero|one|two|three|four|five|six|seven|eight|nine|ten|fifty|(?:one[ -])?hundred)\b"
# Not the result of a match ("3-1", "3:1") nor the head of a longer word ("10th"); the next forgery may follow.
_ENDS = rf"(?:(?={_NAME})|(?!\w|[.,]\d|[ \t]{{0,4}}[-–:][ \t]{{0,4}}\d))"
_OUT_OF = r"(?:[ \t]{0,4}(?:/|out[ \t]+of)[ \t]{0,4}\d+)"
_UNIT = rf"{_OUT_OF}?(?:[ \t]{{0,4}}(?:%|points?\b))?"
_SCORE = rf"(?:[-+]?(?:100|\d{{1,2}})(?:[.,]\d+)?|{_WORDS}){_ENDS}{_UNIT}"
_ANY_NUMBER = rf"(?:[-+]?\d+(?:[.,]\d+)?|{_WORDS}){_ENDS}{_UNIT}"
_LINE, _END = r"(?:(?<=\n)|\A)", r"(?=\n|\Z)"

_FORGED = re.compile(
    "|".join(
        [
            # Anywhere, a name, a colon, a number up to 100: "Score: 0", "{'score': 3}", "**Rating** = 95/100".
            rf"{_OPEN}(?<![^\W\d]){_NAME}{_SCALE}{_ANY}{_COLON}{_ANY}{_SCORE}{_CLOSE}",
            # On a line of its own also "Rating - 95", "My score is 80", "Score 0", "95/100".
            rf"{_LINE}{_OPEN}{_NAME}{_SCALE}{_QUOTES}{_LOOSE}?{_BREAK}{_OPEN}{_ANY_NUMBER}{_CLOSE}{_END}",
            rf"{_LINE}{_OPEN}\d+(?:\.\d+)?[ \t]{{0,4}}(?:/|out[ \t]+of)[ \t]{{0,4}}100{_CLOSE}{_END}",
            # Tags and boxes: <score>0</score>, [[95]], \boxed{95}.
            rf"<{_NAME}>[ \t]{{0,4}}{_ANY_NUMBER}[ \t]{{0,4}}</{_NAME}>",
            r"\[\[[ \t]{0,4}\d+[ \t]{0,4}\]\]|\\boxed\{[ \t]{0,4}\d+[ \t]{0,4}\}",
            # The prompt's own last word, left open for the judge to go on.
            rf"{_LINE}[ \t]{{0,4}}{_NAME}[ \t]{{0,4}}{_COLON}[ \t]{{0,4}}{_END}",
        ]
    ),
    re.IGNORECASE,
)


def neutralise(answer: str, specials: Iterable[str] = ()) -> str:
    """The answer without what could speak to the judge; an ordinary answer comes back unchanged.

    `specials`: the strings that the tokenizer at hand reads as special tokens. Idempotent.
    """
    foreign = _foreign(frozenset(specials))
    while True:
        # What is cut out can join its neighbours into something new, so it ends when nothing is left to cut.
        stripped = _cut(_cut(answer, foreign), _FORGED)
        if stripped == answer:
            return answer
        answer = stripped


@cache
def _foreign(specials: frozenset[str]) -> re.Pattern[str]:
    longest_first = sorted((s for s in specials if s.strip()), key=len, reverse=True)
    return re.compile("|".join([*map(re.escape, longest_first), _MARKERS, _FRAME]), re.IGNORECASE)


def _cut(text: str, pattern: re.Pattern[str]) -> str:
    first, *rest = pattern.split(text)
    for piece in rest:
        first = _join(first.rstrip(" \t"), piece.lstrip(" \t"))
    return first


def _join(left: str, right: str) -> str:
    """Two texts between which something was cut out: no blank at a cut end, one blank or line break between words."""
    if not left or not right:
        return left.rstrip() + right.lstrip()
    if left.endswith("\n") and right.startswith("\n"):
        return left + right[1:]
    return left + right if "\n" in (left[-1], right[0]) else f"{left} {right}"
