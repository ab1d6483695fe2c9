"""Making the demo model."""

from __future__ import annotations

from castor.config.demo_model import DemoModel
from castor.data.rows.load import stream_demonstrations
from castor.data.rows.schemas import QARow
from castor.io.checkpoint import atomic_folder
from castor.models.tiny import make_demo_model
from trainers.stage_run import StageRun


def run_model(run: StageRun) -> str:
    """Make the demo model; returns one line about it."""
    stage: DemoModel = run.section
    with run.rows.store(stage.data, QARow, stream_demonstrations) as rows, atomic_folder(run.files.folder) as aside:
        text = (text for row in rows for text in (row.prompt, row.response))
        vocabulary, parameters = make_demo_model(stage, text, run.seed, aside)
    return f"Llama with {parameters / 1e6:.2f} M parameters, {vocabulary} words"
