"""Several parts at once, each with its share of the cores: what loads or judges leaves a core free for what trains."""

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from perceptune.errors import UserError
from planning import Part


def run_lanes(parts: Sequence[Part], jobs: int, run: Callable[[Part], None]) -> None:
    """Runs the parts in their order, `jobs` at a time, with `run`, which blocks and raises `UserError`.

    A part waits for those of `parts` that it needs and for those that write to a folder of its own; one that measures
    time runs alone. A mistake stops neither what is under way nor what does not need that part; the first one is raised
    in the end.
    """
    waiting, running = list(parts), dict[Future[None], Part]()
    failed: dict[str, UserError] = {}
    with ThreadPoolExecutor(jobs) as pool:
        while waiting or running:
            for part in list(waiting):
                if set(part.needs) & set(failed):
                    waiting.remove(part)
                    failed[part.name] = UserError(f"part `{part.name}`: not begun, for want of what it needs")
                elif len(running) < jobs and _may_start(part, waiting, list(running.values())):
                    waiting.remove(part)
                    running[pool.submit(run, part)] = part
            for done in wait(running, return_when=FIRST_COMPLETED).done:
                part = running.pop(done)
                try:
                    done.result()
                except UserError as error:
                    failed[part.name] = error
    if failed:
        raise next(iter(failed.values()))


def _may_start(part: Part, waiting: Sequence[Part], running: Sequence[Part]) -> bool:
    if running and (part.alone or any(one.alone for one in running)):
        return False
    before = waiting[: waiting.index(part)]
    busy = {folder for one in [*running, *before] for folder in one.folders}
    return not (busy & part.folders or {one.name for one in [*running, *waiting]} & set(part.needs))
