"""The timeline of a stage: every process writes what it does, and the driver puts it together."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from actors.recording import record_here
from castor.io.timeline import write_timeline
from trainers.stage_run import StageRun


@contextmanager
def recording(run: StageRun) -> Iterator[None]:
    """Record the stage while the body runs, where it has a profile; say where to look, also when the body fails."""
    profile = run.profile
    if profile is None:
        yield
        return
    shutil.rmtree(profile.folder, ignore_errors=True)
    record_here(profile, "driver")
    try:
        yield
    finally:
        record_here(None, "driver")
        cut = write_timeline(profile.folder, profile.timeline)
        shown = profile.folder if run.files.run is None else run.files.run.shown(profile.folder)
        more = f" ({', '.join(cut)}: without the later part)" if cut else ""
        run.terminal.line(
            f"  profile of {run.name}{more}: open {shown / profile.timeline.name} in https://ui.perfetto.dev"
        )
        if traces := sorted(file.name for file in profile.folder.glob("*.torch.json.gz")):
            run.terminal.line(f"  torch traces beside it: {', '.join(traces)}")
