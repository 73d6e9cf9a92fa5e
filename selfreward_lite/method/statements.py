"""Statements of a score or of a winner in a judge's text, however a model writes them.

A statement stands at the beginning of a sentence: `Score: 4`, `**Final score:** 4/5`, `Winner: A`.
What is inside a sentence, as a quotation is, is no statement. Thoughts of a reasoning model do not
count, and nothing counts behind a thought that does not end.
"""

import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Value = TypeVar("Value")

_THOUGHT = r"think|thinking|thought|reasoning|reflection|analysis"
_THOUGHT_END = re.compile(
    rf"</(?:{_THOUGHT})>|\[/think\]|◁/think▷|<\|end_of_thought\|>|<\|channel\|>final<\|message\|>",
    re.IGNORECASE,
)
_THOUGHT_BEGIN = re.compile(
    rf"<(?:{_THOUGHT})>|\[think\]|◁think▷|<\|begin_of_thought\|>|<\|channel\|>analysis",
    re.IGNORECASE,
)
# Tokens that end a turn, written as text; what follows one is another turn.
_TURN_END = re.compile(
    r"<\|(?:eot_id|im_end|endoftext|end|end_of_text|return|end_of_solution)\|>|</s>"
    r"|<end_of_turn>|\[END\]"
)
_TOKEN = re.compile(r"<\|[^|<>\n]{1,40}\|>|</?(?:answer|output|result)>", re.IGNORECASE)
_FENCE_OR_RULE = re.compile(r"[`~]{3,}\w*|[-*_=#|: ]{3,}")
_LATEX = re.compile(r"\\(?:text|boxed|mathbf|textbf|mathrm)\b|\\[\[\]()]|\$")
_LIST_MARK = re.compile(r"(?:step\s+)?\d{1,2}\s*[.):]\s+|[a-h]\)\s+|[-+•→–]\s+", re.IGNORECASE)
_SENTENCE_END = re.compile(r"(?<=[.!?。])\s+")
_MARKUP = "#>*_=`~ \t"
_QUOTES = "\"'“”„«»‘’[](){}<>"
_LEAD = re.compile(
    r"(?:(?:therefore|thus|hence|so|overall|all in all|to sum up|in summary|in conclusion)\b,?\s*"
    r"|final (?:verdict|judge?ment|evaluation)\s*:\s*)",
    re.IGNORECASE,
)

_SCORE_NAME = (
    r"(?:the\s+|my\s+)?(?:final\s+|total\s+|overall\s+)?(?:evaluation\s+)?"
    r"(?:score|rating|grade)(?:\s*\(\s*(?:0\s*[-–]\s*5|out of 5)\s*\))?"
    r"|pontuação|punktzahl|puntuación|puntaje|оценка|总分|總分|得分|评分|評分|점수|điểm"
)
_WEAK_NAME = r"(?:final\s+)?total(?:\s+points)?|note"  # also begins other sentences
_SEPARATOR = r"\s*(?:[:=→]|\bis\b|\bof\b|-(?=\s))\s*"
_NUMBER = r"(?P<number>\d{1,2}(?:[.,]\d{1,2})?|zero|one|two|three|four|five)"
_OF_FIVE = r"(?:/|out\s+of(?:\s+a\s+possible)?|of|de)\s*(?:5|five)(?![\d.,/%])"
_UNIT = r"(?:points?|stars?|점|分)"
_TAIL = rf"(?:\s*{_UNIT})?(?:\s*\(?\s*{_OF_FIVE}\s*\)?)?(?:\s*{_UNIT})?(?:\s*\(\d/5\))?"
# Behind a score that stands first: a reason, but no other number that could be meant.
_REASON = r"(?P<reason>\s+-\s+(?!\d).*|\s+\((?!\s*\d)[^\d()]*\)?|\s+(?:because|since|as)\b.*)?"
_SCORE = re.compile(
    rf"(?:(?:{_SCORE_NAME}|{_WEAK_NAME})(?:{_SEPARATOR}))+{_NUMBER}{_TAIL}{_REASON}",
    re.IGNORECASE | re.DOTALL,
)
_NOTE = re.compile(rf"note{_SEPARATOR}{_NUMBER}\s*{_UNIT}?\Z", re.IGNORECASE)
_GIVEN = re.compile(
    r"(?:i\s+(?:would\s+|will\s+)?|i'd\s+)(?:give|rate|grade|award|assign|score)\s+"
    r"(?:it|this|(?:this|the)\s+(?:response|answer|reply))\s+(?:an?\s+|with\s+an?\s+)?"
    rf"(?:(?:score|rating|grade)\s+of\s+)?{_NUMBER}{_TAIL}",
    re.IGNORECASE,
)
_BARE = re.compile(rf"(?P<number>[0-5](?:[.,]\d{{1,2}})?)\s*{_OF_FIVE}", re.IGNORECASE)
_BARE_LINE = re.compile(rf"{_NUMBER}{_TAIL}", re.IGNORECASE)
_NAME_ONLY = re.compile(rf"(?:{_SCORE_NAME})\s*:?", re.IGNORECASE)
_NAMED = re.compile(rf"(?:{_SCORE_NAME})(?:{_SEPARATOR})", re.IGNORECASE)
_JSON_SCORE = re.compile(
    r'"(?:final_|total_|overall_)?(?:score|rating|grade)"\s*:\s*"?(\d(?:\.\d+)?)"?\s*[,}]',
    re.IGNORECASE,
)
# Quotes and brackets around a value: "4", [[4]], <4>, {4}; of "(4/5)", only the first.
_WRAPPED = re.compile(
    r"(?<=[\s:=])[\"'“”„«»‘\[{<`*]+(?=\w)|(?<=[:=])\s*\((?=\w)|(?<=\w)[\"'”“»’\]}>`*]+"
)
_WORDS = {"zero": 0.0, "one": 1.0, "two": 2.0, "three": 3.0, "four": 4.0, "five": 5.0}


@dataclass(frozen=True)
class Statement(Generic[Value]):
    """What a sentence states, None where that is no score or winner; and where it stands.

    `is_last`: nothing follows it in the text; `is_first`: nothing is before it. `is_as_asked`: in
    the form that the judge was asked for, "Score:" or "Winner:".
    """

    value: Value | None
    is_first: bool
    is_last: bool
    is_as_asked: bool


def find_scores(text: str, *, cut: bool = True) -> list[Statement[float]]:
    """Return what a text states as its score, in order; `cut`: up to the end of the turn.

    >>> [(one.value, one.is_last) for one in find_scores("Score: 3\\nSo it is.\\nScore: 9")]
    [(3.0, False), (None, True)]
    >>> find_scores('It says "Score: 5".')
    []
    """
    return _find(_visible(text, cut=cut), _state_score, _NAME_ONLY, _BARE_LINE, "Score")


def find_winners(text: str, noun: str, *, cut: bool = True) -> list[Statement[str]]:
    """Return whom a text states as the winner, "A" or "B", in order; `cut` as in `find_scores`.

    >>> [one.value for one in find_winners("Winner: Response A\\nWinner: tie", "Response")]
    ['A', None]
    """
    spelling = {"Judgement": "judge?ment", "Response": "response"}[noun]
    side = rf"(?:{spelling}\s+)?([ab])(?![\w'])"
    named = re.compile(
        rf"(?:the\s+)?(?:winner|better\s+{spelling})(?:\s*[:=]|\s+is)\s*{side}", re.IGNORECASE
    )
    spoken = re.compile(
        rf"{spelling}\s+([ab])\s+(?:wins|is\s+(?:the\s+)?(?:better|winner))(?:\s+one)?",
        re.IGNORECASE,
    )
    boxed = re.compile(r"\[\[([ab])\]\]", re.IGNORECASE)
    says_winner = re.compile(r"(?:the\s+)?winner(?:\s*[:=]|\s+is\b)|\[\[", re.IGNORECASE)

    def state(sentence: str) -> str | None | bool:
        plain = sentence.strip(_MARKUP + ".!。")
        if whole := boxed.fullmatch(plain):
            return whole.group(1).upper()
        bare = _strip(_WRAPPED.sub("", sentence))
        for form in (named, spoken):
            if found := form.fullmatch(bare):
                return found.group(1).upper()
        return None if says_winner.match(bare) or boxed.search(sentence) else False

    name_only = re.compile(r"winner\s*:?", re.IGNORECASE)
    value_only = re.compile(side, re.IGNORECASE)
    return _find(_visible(text, cut=cut), state, name_only, value_only, "Winner")


def _find(
    text: str,
    state: Callable[[str], Value | None | bool],
    name_only: re.Pattern[str],
    value_only: re.Pattern[str],
    name: str,
) -> list[Statement[Value]]:
    """Find the sentences for which `state` gives a value or None; False is no statement."""
    sentences = list(_split(text, name_only, value_only, name))
    found = []
    for number, sentence in enumerate(sentences):
        value = state(sentence)
        if not isinstance(value, bool):
            is_first, is_last = number == 0, number == len(sentences) - 1
            is_as_asked = _strip(sentence).casefold().startswith(f"{name}:".casefold())
            found.append(Statement(value, is_first, is_last, is_as_asked))
    return found


def _split(
    text: str, name_only: re.Pattern[str], value_only: re.Pattern[str], name: str
) -> Iterator[str]:
    """The sentences of a text, without thoughts, markup and ornaments.

    A name on a line of its own is put before the value on the next.
    """
    lines = [_clean(line) for line in text.splitlines()]
    lines = [line for line in lines if line]
    at = 0
    while at < len(lines):
        line, after = lines[at], lines[at + 1] if at + 1 < len(lines) else ""
        at += 1
        if name_only.fullmatch(_strip(line)) and value_only.fullmatch(_strip(after)):
            yield f"{name}: {_strip(after)}"
            at += 1
        elif _JSON_SCORE.search(line):
            yield line
        else:
            yield from (one for one in _SENTENCE_END.split(line) if one.strip(_MARKUP + _QUOTES))


def _visible(text: str, *, cut: bool) -> str:
    """A text in plain characters, without thoughts; with `cut`, up to the end of the turn.

    What comes before the end of a thought is one; nothing is visible if a thought does not end.
    """
    ends = list(_THOUGHT_END.finditer(text))
    if ends:
        text = text[ends[-1].end() :]
    if _THOUGHT_BEGIN.search(text):
        return ""
    turn_end = _TURN_END.search(text) if cut else None
    text = text[: turn_end.start()] if turn_end else _TURN_END.sub("\n", text)
    text = re.sub(r"<(score|rating)>", r"\1: ", text, flags=re.IGNORECASE)
    text = re.sub(r"</(?:score|rating)>|[★☆⭐]", "", text, flags=re.IGNORECASE)
    text = re.sub(r"【(\w+)】", r"\1: ", _TOKEN.sub("", text))
    text = re.sub(r"\[RESULT\]\s*(?:score\s*:)?", "\nScore: ", text)
    return "".join(
        str(unicodedata.decimal(letter)) if letter.isdecimal() else letter
        for letter in unicodedata.normalize("NFKC", text)
        if unicodedata.category(letter) != "Cf"  # has no width
    )


def _clean(line: str) -> str:
    """A line without marks of headings, lists, quotes and tables; empty for a rule or a fence."""
    line = line.replace("**", "").replace("__", "").strip()
    if "\\" in line or line.startswith("$"):
        line = re.sub(r"[{}]", "", _LATEX.sub("", line)).strip()
    if _FENCE_OR_RULE.fullmatch(line):
        return ""
    if line.startswith("|"):
        line = ": ".join(cell.strip() for cell in line.strip("|").split("|"))
    line = line.lstrip(_MARKUP)
    while mark := _LIST_MARK.match(line):
        line = line[mark.end() :].lstrip(_MARKUP)
    return line.strip()


def _strip(sentence: str) -> str:
    """A sentence without the marks and quotes around it, and without the words that lead to it."""
    bare = sentence.strip(_MARKUP + _QUOTES + ".!。")
    return _LEAD.sub("", bare, count=1) if _LEAD.match(bare) else bare


def _state_score(sentence: str) -> float | None | bool:
    """The score that a sentence states, None for one that is none, False for no statement."""
    if len(stated := _JSON_SCORE.findall(sentence)) == 1 and sentence.startswith("{"):
        return _to_score(stated[0])
    bare = _strip(_WRAPPED.sub("", sentence))
    forms: Sequence[re.Pattern[str]] = (_SCORE, _GIVEN, _BARE)
    for form in forms:
        if (found := form.fullmatch(bare)) and not _NOTE.match(bare):
            return _to_score(found.group("number"))
    return None if _NAMED.match(bare) else False


def _to_score(number: str) -> float | None:
    """The score of a number or a word; None outside [0, 5], and between 0 and ½: another scale."""
    value = _WORDS.get(number.casefold())
    value = float(number.replace(",", ".")) if value is None else value
    return value if value <= 5 and not (0 < value < 1 and value != 0.5) else None
