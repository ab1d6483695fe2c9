"""Steps of TRL's GRPO or RLOO trainer, for a Python that has TRL: `python -m benchmarks.bench.trl_steps JSON`.

Of its own choices those are changed that would slow it down here: gradient checkpointing, saving, reporting.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any


def main() -> None:
    """Train as the JSON file says, and write `seconds` of each step, and `lengths` of its responses, to `output`."""
    asked = json.loads(Path(sys.argv[1]).read_text())
    import torch

    torch.set_num_threads(asked["threads"])
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    from benchmarks.bench.word_reward import share_of_b

    def reward(prompts: list[str], completions: list[str], **rest: Any) -> list[float]:
        return share_of_b(prompts, completions)

    ends = [time.perf_counter()]

    class Laps(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            ends.append(time.perf_counter())

    options = {
        "output_dir": asked["folder"], "max_steps": asked["steps"], "learning_rate": asked["lr"],
        "lr_scheduler_type": "constant", "adam_beta1": 0.9, "adam_beta2": 0.95, "max_grad_norm": 1.0,
        "per_device_train_batch_size": asked["prompts"] * asked["samples"], "num_generations": asked["samples"],
        "max_completion_length": asked["max_new_tokens"], "temperature": 1.0, "beta": asked["kl_coeff"],
        "epsilon": 0.2, "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "save_strategy": "no",
        "report_to": [], "logging_steps": 1, "disable_tqdm": True, "seed": 0,
    }  # fmt: skip
    if asked["method"] == "grpo":
        config, kind = GRPOConfig(loss_type="grpo", **options), GRPOTrainer
    else:
        config, kind = RLOOConfig(**options), RLOOTrainer
    trainer = kind(
        model=asked["model"],
        reward_funcs=[reward],
        args=config,
        train_dataset=Dataset.from_dict({"prompt": asked["texts"]}),
        processing_class=AutoTokenizer.from_pretrained(asked["model"], padding_side="left"),
        callbacks=[Laps()],
    )
    ends[0] = time.perf_counter()
    trainer.train()
    found = {
        "seconds": [after - before for before, after in itertools.pairwise(ends)],
        "lengths": [each["completions/mean_length"] for each in trainer.state.log_history if "loss" in each],
    }
    Path(asked["output"]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
