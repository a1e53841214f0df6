"""What `rclip-metric eval filter` reads from its options."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING

from rclip_metric.train.data.filter_pools import BOTH_WAYS, ROLES, Sizes, read_filter_pools
from rclip_metric.train.metrics.paper import published_as
from rclip_metric.train.metrics.paper_filter import STEPS

if TYPE_CHECKING:
    from rclip_metric.train.evaluation.tasks.filtering import Filtering


def filter_task(options: argparse.Namespace) -> Filtering:
    """Draw the images, and name the set.

    Raises:
        ValueError: as `read_filter_pools` raises it, and for options that do not go together.
    """
    from rclip_metric.train.evaluation.tasks.filtering import Filtering

    if options.limit:
        raise ValueError("--limit would keep the queries of one direction only: use --queries")
    if (options.query is None) != (options.target is None):
        raise ValueError("--query and --target go together, as in --query unsafe --target safe: pass both or neither")
    direction = ((options.query, options.target),) if options.query else BOTH_WAYS
    pools = read_filter_pools(
        options.data,
        {role: getattr(options, role) or () for role in ROLES},
        table=options.classes,
        directions=direction,
        buffer=not options.no_buffer,
        sizes=Sizes(options.pool_size, options.targets, options.queries),
        seed=options.seed,
    )
    task = Filtering(pools, options.name or options.data.resolve().name)
    # The paper filters two sets: one without a buffer, and with more steps.
    known = "guns" if options.no_buffer and options.steps == STEPS["guns"] else "nsfw"
    digest = str(task.settings()["digest"])
    return replace(task, published=published_as(known, len(pools.queries), digest, stated=options.published))
