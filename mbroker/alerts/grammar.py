"""From text to tree: a recursive descent whose errors name the column and all that could stand there."""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import Enum
from typing import NoReturn, TypeVar

import attrs

from mbroker.action import Severity

from .selector import WORDS, Label, Relation, Selector
from .terms import UNITS, Count, Function, Operator, Span, Window, check_least, check_quantile, check_window
from .tree import (
    DEEPEST,
    Absent,
    And,
    Comparison,
    Condition,
    Expression,
    Handling,
    Instant,
    NoData,
    Not,
    Or,
    Rule,
    Spatial,
    Temporal,
)

__all__ = ["LONGEST", "SubscriptionError", "parse"]

LONGEST = 4096
"""Most characters of one subscription."""

T = TypeVar("T")
E = TypeVar("E", bound=Enum)


class SubscriptionError(ValueError):
    """A text is no subscription; the message is one line that says where and what was expected."""

    def __init__(self, text: str, index: int, reason: str) -> None:
        self.text = text
        self.reason = reason
        self.line = text.count("\n", 0, index) + 1
        """The line of the fault, from 1."""
        self.column = index - text.rfind("\n", 0, index)
        """The character of that line where the fault begins, from 1."""
        where = f"column {self.column}" if "\n" not in text else f"line {self.line}, column {self.column}"
        super().__init__(f"{where}: {reason}")

    def marked(self) -> str:
        """Return the faulty line with a caret under the column, for terminals."""
        return f"{self.text.split(chr(10))[self.line - 1]}\n{' ' * (self.column - 1)}^"


_TOKEN = re.compile(
    r"""[ \t\r\n]*(?:
      (?P<duration> \d+(?:ms|[smhd])(?![\w.]) )
    | (?P<whole> \d+(?![\w.]) )
    | (?P<number> -?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?(?![\w.]) )
    | (?P<name> [A-Za-z_][A-Za-z0-9_.:]* )
    | (?P<text> "(?:[^"\\]|\\.)*" | '(?:[^'\\]|\\.)*' )
    | (?P<sign> =~ | !~ | >= | <= | == | != | [><={}\[\](),] )
    | (?P<end> \Z )
    | (?P<alien> -?\.?\d[\w.]* | . )
    )""",
    re.ASCII | re.DOTALL | re.VERBOSE,
)
_PERCENTILE = re.compile(r"p([1-9][0-9]?)")
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_UNIT = re.compile(r"(\d+)([a-z]+)", re.ASCII)


@attrs.frozen
class _Token:
    kind: str
    text: str
    start: int

    @property
    def shown(self) -> str:
        """What an error says was found."""
        if self.kind == "end":
            return "the end"
        if self.kind == "alien" and self.text in "\"'":
            return "a text without its closing quote"
        return repr(self.text if len(self.text) <= 40 else f"{self.text[:37]}...")


def parse(text: str) -> tuple[Rule, Handling]:
    """Return what *text* says; raise :exc:`SubscriptionError` when it says nothing."""
    if len(text) > LONGEST:
        raise SubscriptionError(text, LONGEST, f"a subscription has at most {LONGEST} characters, not {len(text)}")
    return _Parser(text).subscription()


def _tokens(text: str) -> list[_Token]:
    found: list[_Token] = []
    for match in _TOKEN.finditer(text):
        kind = match.lastgroup or "end"
        found.append(_Token(kind, match[kind], match.start(kind)))
        if kind == "end":
            break
    return found


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = _tokens(text)
        self._index = 0
        self._wanted: list[str] = []  # all that was asked of the token at _index, and is not there

    # -- tokens

    @property
    def _here(self) -> _Token:
        return self._tokens[self._index]

    def _take(self) -> _Token:
        token = self._here
        self._index += 1
        self._wanted.clear()
        return token

    def _accept(self, word: str) -> bool:
        """Take the next token if it is *word*."""
        if self._here.text == word:
            self._take()
            return True
        self._wanted.append(repr(word))
        return False

    def _expect(self, word: str) -> None:
        if not self._accept(word):
            self._fail()

    def _expect_kind(self, kinds: tuple[str, ...], what: str) -> _Token:
        if self._here.kind not in kinds:
            self._fail(what)
        return self._take()

    def _choose(self, kind: type[E]) -> E:
        """Take the next token as a member of *kind*."""
        found = next((member for member in kind if self._accept(member.value)), None)
        if found is None:
            self._fail()
        return found

    def _fail(self, *wanted: str) -> NoReturn:
        choices = list(dict.fromkeys([*self._wanted, *wanted]))
        listed = " or ".join(filter(None, [", ".join(choices[:-1]), choices[-1]]))
        self._blame(self._here, f"expected {listed}, found {self._here.shown}")

    def _blame(self, token: _Token, reason: str) -> NoReturn:
        raise SubscriptionError(self._text, token.start, reason) from None

    def _make(self, token: _Token, kind: Callable[..., T], *values: object) -> T:
        """Return ``kind(*values)``; what it says against its values is said of *token*."""
        try:
            return kind(*values)
        except ValueError as error:
            self._blame(token, str(error))

    # -- subscription := condition clause*

    def subscription(self) -> tuple[Rule, Handling]:
        start = self._here
        condition = self._condition(0)
        clear = hold = None
        nodata = NoData.KEEP
        handling = Handling()
        given: set[str] = set()
        while self._here.kind != "end":
            clause = self._here
            if clause.kind == "name" and clause.text in given:
                self._blame(clause, f"{clause.text!r} was said before")
            if self._accept("clear"):
                if not isinstance(condition, Comparison):
                    self._blame(clause, "clear needs a condition that is one comparison")
                clear = self._compared(condition.expression)
                self._make(clause, Rule, condition, clear)
            elif self._accept("for"):
                hold = self._span()
            elif self._accept("nodata"):
                nodata = self._choose(NoData)
            elif self._accept("severity"):
                handling = attrs.evolve(handling, severity=self._choose(Severity))
            elif self._accept("keep"):
                metrics = self._names("a metric")
                handling = self._make(clause, Handling, handling.severity, metrics, handling.expire)
            elif self._accept("expire"):
                handling = attrs.evolve(handling, expire=self._span())
            else:
                self._fail("the end")
            given.add(clause.text)
        return self._make(start, Rule, condition, clear, hold, nodata), handling

    # -- conditions

    def _condition(self, depth: int) -> Condition:
        if depth > DEEPEST:
            self._blame(self._here, f"conditions may be nested at most {DEEPEST} deep")
        parts = [self._conjunction(depth)]
        while self._accept("or"):
            parts.append(self._conjunction(depth))
        return parts[0] if len(parts) == 1 else Or(tuple(parts))

    def _conjunction(self, depth: int) -> Condition:
        parts = [self._term(depth)]
        while self._accept("and"):
            parts.append(self._term(depth))
        return parts[0] if len(parts) == 1 else And(tuple(parts))

    def _term(self, depth: int) -> Condition:
        if depth > DEEPEST:
            self._blame(self._here, f"conditions may be nested at most {DEEPEST} deep")
        if self._accept("not"):
            return Not(self._term(depth + 1))
        if self._accept("("):
            condition = self._condition(depth + 1)
            self._expect(")")
            return condition
        if self._accept("absent"):
            return self._absent()
        start = self._here
        expression = self._expression()
        return self._compared(expression, start)

    def _absent(self) -> Absent:
        self._expect("(")
        selector = self._selector("a metric")
        self._expect("[")
        start = self._here
        span = self._window()
        self._expect("]")
        self._expect(")")
        return self._make(start, Absent, selector, span)

    def _compared(self, expression: Expression, start: _Token | None = None) -> Comparison:
        operator = self._choose(Operator)
        token = self._expect_kind(("whole", "number"), "a number")
        number = float(token.text)
        if number in (float("inf"), float("-inf")):
            self._blame(token, f"{token.text:.40} is beyond the range of a double")
        return self._make(start or token, Comparison, expression, operator, number)

    # -- expressions

    def _expression(self) -> Expression:
        """Return what is compared: the newest sample of each endpoint, or a function."""
        if self._calls():
            return self._call()
        self._wanted.append("a function")
        selector = self._selector("a metric")
        if self._here.text == "[":
            self._blame(
                self._here, f"a window holds many samples; write a function of it: mean({selector.metric}[...])"
            )
        return Instant(selector)

    def _calls(self) -> bool:
        return self._here.kind == "name" and self._tokens[self._index + 1].text == "(" and self._here.text not in WORDS

    def _call(self, outer: Function | None = None) -> Temporal | Spatial:
        start = self._here
        function, quantile = self._function()
        least = window = None
        self._expect("(")
        if function is Function.QUANTILE and quantile is None:
            token = self._expect_kind(("whole", "number"), "a number from 0 to 1")
            quantile = float(token.text)
            self._make(token, check_quantile, quantile)
            self._expect(",")
        elif function is Function.ATLEAST:
            token = self._expect_kind(("whole",), "a whole number")
            least = int(token.text)
            self._make(token, check_least, least)
            self._expect(",")
        elif function is Function.EWMA:
            window = self._window()
            self._expect(",")
        if self._calls():
            if outer is not None:
                self._blame(self._here, "only two functions can be nested, the outer one of endpoints")
            member: Instant | Temporal = self._nested(function)
        else:
            if outer is None and function.is_spatial:
                self._wanted.append("a function")
            selector = self._selector("a metric")
            if window is None and self._accept("["):
                window = self._window(counted=True)
                self._expect("]")
            if window is not None:
                self._expect(")")
                return self._make(start, Temporal, function, selector, window, quantile)
            member = Instant(selector)
        self._expect(")")
        return self._make(start, Spatial, function, member, self._by(), least, quantile)

    def _nested(self, outer: Function) -> Temporal:
        """Return the function of a window that each endpoint contributes to *outer*."""
        start = self._here
        if not outer.is_spatial:
            self._blame(start, f"{outer.value} needs a metric and a window here: {outer.value}(metric[5m])")
        inner = self._call(outer)
        if isinstance(inner, Spatial):
            self._blame(
                start, f"{start.text} needs a window here, such as [5m]: only the outer function is of endpoints"
            )
        return inner

    def _function(self) -> tuple[Function, float | None]:
        token = self._take()
        percent = _PERCENTILE.fullmatch(token.text)
        if percent:
            return Function.QUANTILE, int(percent[1]) / 100
        try:
            return Function(token.text), None
        except ValueError:
            known = " ".join(function.value for function in Function)
            self._blame(token, f"there is no function {token.text[:40]!r}; there are {known} p1 ... p99")

    def _by(self) -> tuple[str, ...]:
        if not self._accept("by"):
            return ()
        self._expect("(")
        labels = self._names("a label")
        self._expect(")")
        return labels

    # -- selectors

    def _selector(self, what: str) -> Selector:
        start = self._here
        metric = self._name(what)
        labels: list[Label] = []
        if self._accept("{") and not self._accept("}"):
            labels.append(self._label())
            while self._accept(","):
                labels.append(self._label())
            self._expect("}")
        return self._make(start, Selector, metric, tuple(labels))

    def _label(self) -> Label:
        name = self._name("a label")
        relation = self._choose(Relation)
        token = self._expect_kind(("text",), "a text in quotes")
        for escape in _ESCAPE.finditer(token.text, 1, len(token.text) - 1):
            if escape[1] not in "\\\"'":
                place = attrs.evolve(token, start=token.start + escape.start())
                self._blame(place, f"a text knows no escape {escape[0]!r:.10}; a backslash itself is written \\\\")
        return self._make(token, Label, name, relation, _ESCAPE.sub(r"\1", token.text[1:-1]))

    def _names(self, what: str) -> tuple[str, ...]:
        names = [self._name(what)]
        while self._accept(","):
            names.append(self._name(what))
        return tuple(names)

    def _name(self, what: str) -> str:
        if self._here.text in WORDS:
            self._fail(what)
        return self._expect_kind(("name",), what).text

    def _window(self, *, counted: bool = False) -> Window:
        """Return a duration that a window may have or, if it can be *counted*, a number of samples."""
        token = self._here
        if counted and token.kind == "whole":
            return self._make(self._take(), Count, int(token.text))
        if counted:
            self._wanted.append("a number of samples")
        window = self._span()
        self._make(token, check_window, window)
        return window

    def _span(self) -> Span:
        token = self._expect_kind(("duration",), "a duration such as 30s or 2m")
        match = _UNIT.fullmatch(token.text)
        assert match is not None
        return self._make(token, Span, int(match[1]) * UNITS[match[2]])
