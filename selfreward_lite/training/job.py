"""A training job: what is trained on which rows, and in which order.

Knows: which text is prompt and which completion, token ids, how long a row is. Does not know: torch, trainers (those are in
`train`, which runs in a child so that its memory really comes back). All ids come from `chat`, so a prompt is the same
tokens to a trainer as to the engine; a completion is its stripped text, encoded again.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from selfreward_lite.system.files import sha256_of

FIRST_MARGIN_LIMIT = (
    1e-4  # reward margin of the first step; larger means that the reference is another model
)
PROBE_STEPS = 5
FROZEN_STEPS = 5  # a loss that is the same to the last digit for so many steps is not being trained
Report = Callable[
    [Mapping[str, Any]], None
]  # `step`, `steps` in all and the `values` that the trainer logged; or `words`


@dataclass(frozen=True)
class Job:
    """Everything that the training child needs.

    `adapter_in` is the adapter to go on from, None for a fresh one; for DPO it is the reference as well. `rows` is a
    JSON-lines file of token ids: prompt_ids with completion_ids (SFT), or with chosen_ids and rejected_ids (DPO).
    `min_moved_share` of the adapter's weights must have moved after PROBE_STEPS, or the rest of the training is not worth it.
    At the time of day `until` (seconds since 1970) the training ends: with a model if half of it is done, else with a checkpoint
    and no model. A checkpoint is written to `checkpoints` every `checkpoint_minutes`, and gone on from if one of this very job is
    there. `memory` are the bytes of the card that torch may take, None for all.
    """

    method: Literal["sft", "dpo"]
    model_dir: str
    quantisation: str
    adapter_in: str | None
    adapter_out: str
    rows: str
    row_count: int
    pad: int
    seed: int
    settings: Mapping[str, Any]
    lora: Mapping[str, Any]
    checkpoints: str
    checkpoint_minutes: float = 10.0
    backend: Literal["auto", "unsloth", "transformers"] = "auto"
    min_moved_share: float = 0.9
    until: float | None = None
    memory: int | None = None

    def digest(self) -> str:
        """Return what tells this job from any other: what it begins with, its rows, and all that its steps depend on."""
        weights = Path(self.adapter_in) / "adapter_model.safetensors" if self.adapter_in else None
        steps = {
            name: value for name, value in self.settings.items() if name != "micro_batch"
        }  # it pads otherwise, and no more
        known = [
            self.method,
            self.quantisation,
            sha256_of(Path(self.rows)),
            weights and sha256_of(weights),
            self.seed,
            steps,
        ]
        return hashlib.sha256(
            json.dumps([*known, dict(self.lora)], sort_keys=True).encode()
        ).hexdigest()


def frozen_or_broken(losses: Sequence[float]) -> str | None:
    """Say what is wrong with a course of losses: one that is not finite, is exactly 0, or stays the same for FROZEN_STEPS.

    >>> frozen_or_broken([0.69, 0.5]), frozen_or_broken([0.69, 0.0]), frozen_or_broken([0.69] * 5)
    (None, 'the loss is exactly 0', 'the loss stayed at 0.69 for 5 steps')
    """
    if not all(math.isfinite(loss) for loss in losses):
        return "the loss is not a number"
    if 0.0 in losses:
        return "the loss is exactly 0"
    for start in range(len(losses) - FROZEN_STEPS + 1):
        if len(set(losses[start : start + FROZEN_STEPS])) == 1:
            return f"the loss stayed at {losses[start]} for {FROZEN_STEPS} steps"
    return None
