"""What a Prometheus exporter says: the text format that node_exporter and its kin answer with.

Names and labels stay as they are, so that rules that were written for them find them. Labels that belong to the broker
(``host``, ``domain``), or are words of the subscription language, become ``exported_host`` and so on, or
``exported_exported_host`` where the exporter has such a label itself.
"""

from __future__ import annotations

from collections.abc import Container

from prometheus_client.parser import text_string_to_metric_families

from mchannel.agents.publisher import Reading
from mchannel.samples import RESERVED, Labels, Named

__all__ = ["from_text"]

_LONGEST = 8192  # characters of a line; the parser's time grows with their square
_MOST = 100_000  # samples
_TAKEN = RESERVED | {"host", "domain"}


def from_text(text: str) -> list[Reading]:
    """Return the samples in *text*; raise ValueError if it is malformed.

    What it says of types is passed over: it would have the parser rename counters.
    """
    lines = [line for line in text.split("\n") if line.strip() and not line.lstrip().startswith("#")]
    if len(lines) > _MOST:
        raise ValueError(f"it has more than {_MOST} samples")
    if any(len(line) > _LONGEST for line in lines):
        raise ValueError(f"it has a line of more than {_LONGEST} characters")
    try:
        return [
            Reading(
                Named(sample.name, _labels(sample.labels)),
                float(sample.value),
                None if sample.timestamp is None else round(float(sample.timestamp) * 1000),
            )
            for family in text_string_to_metric_families("\n".join([*lines, ""]))
            for sample in family.samples
        ]
    except (ValueError, OverflowError, LookupError) as error:
        raise ValueError(f"it is no exposition: {' '.join(str(error).split())[:120]}") from None


def _labels(labels: dict[str, str]) -> Labels:
    """Return *labels* sorted, and each name once; one that is empty is the same as none."""
    found = {name: value for name, value in labels.items() if value and name not in _TAKEN}
    for name in sorted(_TAKEN & labels.keys()):
        if labels[name]:
            found[_exported(name, found)] = labels[name]
    return tuple(sorted(found.items()))


def _exported(name: str, others: Container[str]) -> str:
    while name in _TAKEN or name in others:
        name = f"exported_{name}"
    return name
