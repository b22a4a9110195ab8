"""Progress bars on stderr, where that is a terminal; nothing anywhere else."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)

from hotslot.contract.catalog import TransferProgress, TransferStage

# Stages that move no bytes are over when the next begins, and have nothing to measure.
_MEASURED = {TransferStage.HASHING, TransferStage.UPLOADING, TransferStage.FETCHING}


@contextmanager
def transfer_bars() -> Iterator[Callable[[TransferProgress], None]]:
    """Bars for a push or an import, one for each stage; yields what to call with each progress."""
    console = Console(stderr=True)
    progress = Progress(
        SpinnerColumn(finished_text="✓"),
        TextColumn("{task.description:<10}"),
        BarColumn(bar_width=30),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    tasks: dict[TransferStage, TaskID] = {}

    def on_progress(heard: TransferProgress) -> None:
        if heard.stage not in tasks:
            _finish(progress, tasks)
            tasks[heard.stage] = progress.add_task(heard.stage.value, total=None)
        total = heard.total_bytes if heard.stage in _MEASURED and heard.total_bytes else None
        progress.update(tasks[heard.stage], completed=heard.done_bytes, total=total)

    with progress:
        yield on_progress
        _finish(progress, tasks)


def _finish(progress: Progress, tasks: dict[TransferStage, TaskID]) -> None:
    for task_id in tasks.values():
        task = progress.tasks[task_id]
        progress.update(task_id, total=task.total or task.completed or 1, completed=task.total or task.completed or 1)
