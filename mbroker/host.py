"""A read-only picture of one host, as policies see it."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

__all__ = ["Domain", "Host"]


@attrs.frozen
class Domain:
    """A VM (or any group of processes that is managed as one) on this host."""

    name: str
    level: int
    """Present p-state of its virtual CPUs, an index into :attr:`Host.p_states`."""
    cpus: tuple[int, ...] = (0,)
    """Physical CPUs that its virtual CPUs are mapped onto now."""


def _ascending(_: object, attribute: attrs.Attribute[tuple[int, ...]], value: tuple[int, ...]) -> None:
    if not value or list(value) != sorted(set(value)) or value[0] <= 0:
        raise ValueError(f"{attribute.name} must be positive frequencies in MHz, each above the last: {value}")


@attrs.frozen
class Host:
    """What is known of one host. Values; a change makes a new picture (``attrs.evolve``)."""

    name: str
    p_states: tuple[int, ...] = attrs.field(default=(1000, 1800, 2000, 2200, 2400), validator=_ascending)
    """Frequencies in MHz, slowest first. The default is the paper's testbed (section 4.1.1)."""
    domains: Mapping[str, Domain] = attrs.field(factory=dict[str, Domain])

    @property
    def top(self) -> int:
        """Index of the fastest p-state."""
        return len(self.p_states) - 1

    def level(self, domain: str) -> int:
        """Return the present p-state of *domain*; a domain not seen yet runs at the top."""
        known = self.domains.get(domain)
        return self.top if known is None else known.level

    def with_level(self, domain: str, level: int) -> Host:
        """Return the picture in which *domain* runs at *level*; one not seen yet is mapped onto no physical CPU."""
        known = self.domains.get(domain, Domain(domain, level, ()))
        return attrs.evolve(self, domains={**self.domains, domain: attrs.evolve(known, level=level)})

    def at_top(self) -> Host:
        """Return the picture after everything was restored: every domain at its top."""
        domains = {name: attrs.evolve(domain, level=self.top) for name, domain in self.domains.items()}
        return attrs.evolve(self, domains=domains)

    def cpu_levels(self) -> dict[int, int]:
        """Return for each physical CPU the highest level among the domains mapped onto it."""
        levels: dict[int, int] = {}
        for domain in self.domains.values():
            for cpu in domain.cpus:
                levels[cpu] = max(levels.get(cpu, 0), domain.level)
        return levels
