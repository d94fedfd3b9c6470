"""Options of a sweep that cannot act: searched ones in some trials, fixed ones in all of them."""

from __future__ import annotations

from trainable.core.idle_options import why_idle
from trainable.core.options import option_info
from tune.spec.space import DEFAULTS, Space


def idle_parameters(space: Space) -> dict[str, str]:
    """Return why options of a sweep have no effect, by name.

    A searched option is named if it has none in some of the trials that it is drawn in; a `when` prevents that. One
    that is fixed, and not at its default, is named if it has none in any trial. Of a continuous range the two ends are
    tried.
    """
    idle = {
        parameter.name: f"in trials where {reasons[0]}: give it a `when`"
        for parameter in space.parameters
        if (reasons := list(filter(None, _reasons(space, parameter.name))))
    }
    for name, value in space.fixed.items():
        reasons = _reasons(space, name) if value != DEFAULTS[name] else []
        if reasons and all(reasons):
            idle[name] = reasons[0]
    return idle


def _reasons(space: Space, name: str) -> list[str]:
    """Return, for each combination of the options that one depends on, why it has no effect; "" where it has one.

    Combinations in which a searched option is not drawn, or is at its default, are left out.
    """
    searched = {parameter.name for parameter in space.parameters}
    needed = [other for other in (name, *option_info(name).acts_if) if other in searched]
    return [
        why_idle(name, DEFAULTS | space.constants | chosen)
        for chosen in space.combinations(needed)
        if name not in searched or chosen.get(name, DEFAULTS[name]) != DEFAULTS[name]
    ]
