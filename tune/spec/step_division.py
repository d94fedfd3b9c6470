"""Whether the steps of all recipes of a space can be divided among the processes of a trial."""

from __future__ import annotations

import math

from trainable.core.division import divisors
from tune.spec.space import DEFAULTS, Space


def undivided_step(space: Space, local: int, nodes: int = 1) -> str:
    """Return which step of a space a trial's processes cannot divide, and what to do; "" if they can divide all.

    local: number of processes on each node.
    """
    names = ("batch_size", "accumulation_steps")
    recipes = [DEFAULTS | space.constants | chosen for chosen in space.combinations(names)]
    steps = sorted({(int(recipe[names[0]]), int(recipe[names[1]])) for recipe in recipes})
    processes = local * nodes
    wrong = next(((batch, count) for batch, count in steps if batch * count % processes), None)
    if wrong is None:
        return ""
    batch, count = wrong
    common = math.gcd(*(batch * count for batch, count in steps))
    fitting = ", ".join(map(str, divisors(common)))
    has, among, wanted = f"resources.gpu is {local}", f"{processes} GPUs", "resources.gpu"
    if nodes > 1:
        has = f"resources.nodes is {nodes}, with {local} process{'es' * (local > 1)} on each"
        among = f"{processes} processes"
        wanted = "resources.nodes" if local == 1 else "resources.gpu x resources.nodes"
    recipes_in_words = "every recipe" if len(steps) > 1 else "the recipes"
    return (
        f"{has}, but a step of {batch * count} patches (batch_size {batch} x accumulation_steps {count}) cannot be "
        f"divided among {among}; expected {wanted} of {fitting}, which {'divides' if common == 1 else 'divide'} "
        f"{recipes_in_words} of this space, or values of both whose products are multiples of {processes}"
    )
