"""Precompute a recipe's encoder features, or manage the feature cache.

Examples:
  perceptune features small --split train task.train=my.jsonl
  perceptune features info
  perceptune features gc --older-than 30
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from perceptune.cli.output import out, print_json
from perceptune.cli.parsing import Namespace, Parser


def add_arguments(parser: Parser) -> None:
    """Add the options."""
    parser.add_argument("what", metavar="RECIPE|info|verify|gc", help="a recipe, or an operation on the cache")
    parser.add_overrides("recipe keys")
    parser.add_argument("--split", action="append", default=[], help="split to compute; repeatable (default: all)")
    parser.add_argument("--dir", help="info, verify, gc: folder of the cache (default: the user's)")
    parser.add_argument("--older-than", type=float, metavar="DAYS", help="gc: remove caches unused for DAYS days")
    parser.add_argument("--max-gb", type=float, metavar="N", help="gc: remove least recently used caches beyond N GB")
    parser.add_json()


def run(options: Namespace) -> int:
    """Build or manage caches; return 1 if rows are damaged or media are broken."""
    from perceptune.config.recipe import load_recipe
    from perceptune.tools import feature_cache

    folder = None if options.dir is None else Path(options.dir)
    if options.what == "info":
        found = feature_cache.caches(folder)
        print_json(found) if options.json else out.print(_table(found))
        return 0
    if options.what == "verify":
        damaged = feature_cache.verify_features(folder)
        for file, count in damaged.items():
            out.print(f"{file}: {count} damaged")
        then = "damaged rows are not used; `perceptune features gc` removes them, the next use computes them again"
        out.print(then if damaged else "every row is as it was written")
        return 1 if damaged else 0
    if options.what == "gc":
        done = feature_cache.collect_garbage(folder, older_than=options.older_than, max_gb=options.max_gb)
        for name in done["removed"]:
            out.print(f"removed {name}")
        out.print(f"{done['freed'] / 1e6:.1f} MB freed")
        return 0
    built = feature_cache.build_features(load_recipe(options.what, options.overrides), options.split)
    print_json(built) if options.json else _print_built(built)
    return 1 if built["broken"] else 0


def _print_built(built: dict[str, Any]) -> None:
    share = f" (process {built['rank']} of {built['world']})" if built["world"] > 1 else ""
    out.print(f"{built['computed']} rows computed for {built['media']} media in {built['seconds']:.1f} s, "
              f"{built['media_per_second']:.0f}/s; the cache has {built['bytes'] / 1e6:.1f} MB{share}")  # fmt: skip
    for name, reason in built["broken"].items():
        out.print(f"broken: {reason if name in reason else f'{name}: {reason}'}")


def _table(found: Sequence[dict[str, Any]]) -> Table:
    table = Table("kind", "encoder", "levels", "dtype", "rows", "MB", "last use", "folder")
    for one in found:
        day = time.strftime("%Y-%m-%d", time.localtime(one["last_use"]))
        levels = ",".join(map(str, one["levels"]))
        table.add_row(one["kind"], one["encoder"], levels, one["dtype"], str(one["rows"]),
                      f"{one['bytes'] / 1e6:.1f}", day, Path(one["folder"]).name)  # fmt: skip
    return table
