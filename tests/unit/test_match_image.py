"""A matcher that was saved and loaded goes on as the other would have gone on."""

from __future__ import annotations

from array import array

from mbroker.alerts.kernel import Compare, Kernel, Made, NoDataCode, Term, View


def test_what_is_due_together_comes_in_the_same_order() -> None:
    kernel, again = Kernel(), Kernel()
    numbers = [kernel.open_series(patience) for patience in (10, 20, 20, 20, 20)]
    for number in numbers:
        kernel.add(Term(number, View(Made.LAST), Compare.ABOVE, 5.0), nodata=NoDataCode.FIRE)
    kernel.push(array("I", numbers), array("d", [1.0] * 5), array("q", [1] * 5))
    first = [rule for _, _, rule, *_ in kernel.tick(10)]
    again.load(kernel.save())
    rest = [rule for _, _, rule, *_ in kernel.tick(20)]
    assert (len(first), len(rest)) == (1, 4)
    assert [rule for _, _, rule, *_ in again.tick(20)] == rest
