"""What a run was expected to take, kept beside it from its first start, and set beside what it then took.

`prediction.json` lies in the run's folder and is never written again: a prediction that knows the outcome is none. Who predicts, and how,
is not known here (`recipes.estimate`); the page of a run (`report`) shows both.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from herd.base.atomic import atomic_file
from herd.base.config_io import from_dict, to_dict
from herd.base.errors import HerdError
from herd.base.log import get_logger
from herd.plan.train import Beside
from herd.train.energy import JOULES_PER_KWH

log = get_logger(__name__)

PREDICTION = "prediction.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class StageEstimate:
    """One stage: `seconds` None where neither a measured speed nor a peak is at hand. `basis` says where they come from.

    `memory_bytes` is what the fullest device needs in the largest phase; of these `reserve_bytes` are not tensors, and no allocator of a
    GPU (`on_gpu`) counts them. `watts` is the nameplate of all devices together.
    """

    name: str
    num_steps: int
    num_tokens: int
    flops: float
    memory_bytes: int
    reserve_bytes: int = 0
    on_gpu: bool = False
    seconds: float | None = None
    basis: str = ""
    watts: float = 0.0

    @property
    def tokens_per_s(self) -> float | None:
        """Of all devices, padding included."""
        return None if not self.seconds else self.num_tokens / self.seconds

    @property
    def step_s(self) -> float | None:
        """Of the mean step."""
        return None if self.seconds is None else self.seconds / self.num_steps

    @property
    def energy_kwh(self) -> float | None:
        """Of the devices, by the nameplate."""
        return None if self.seconds is None else self.watts * self.seconds / JOULES_PER_KWH


def save_prediction(run: Path, stages: Sequence[StageEstimate]) -> None:
    """Keep a run's prediction. One that is there already stays."""
    path = run / PREDICTION
    if not path.exists():
        run.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as temporary:
            temporary.write_text(json.dumps({"stages": [to_dict(stage) for stage in stages]}, indent=1) + "\n", encoding="utf-8")


def read_prediction(run: Path) -> dict[str, StageEstimate]:
    """The stages of a run's prediction by name; none where it has none, and with a warning where it cannot be read."""
    path = run / PREDICTION
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["stages"]
        stages: list[StageEstimate] = [from_dict(StageEstimate, stage, where=PREDICTION) for stage in found]
    except (ValueError, KeyError, TypeError, HerdError) as error:
        log.warning("%s is no prediction, and is left out: %s", path, error)
        return {}
    return {stage.name: stage for stage in stages}


def beside_measured(
    stage: StageEstimate,
    *,
    num_steps: int,
    seconds: float,
    tokens_per_s: float | None,
    peak_memory_bytes: int | None,
    energy_kwh: float,
    kg_per_kwh: float,
) -> tuple[Beside, ...]:
    """Each predicted figure beside the measured one; what either side lacks is left out.

    Time and energy are those of the `num_steps` steps that were made, which may be fewer than were planned. `kg_per_kwh` is the carbon of a
    kWh of the machine, its building's overhead included.
    """
    done = num_steps / stage.num_steps
    pairs: list[tuple[str, float | None, float | int | None]] = [
        ("peak_bytes", stage.memory_bytes - (stage.reserve_bytes if stage.on_gpu else 0), peak_memory_bytes),
        ("tokens_per_s", stage.tokens_per_s, tokens_per_s),
    ]
    if stage.seconds is not None and stage.energy_kwh is not None and num_steps:
        energy = stage.energy_kwh * done
        pairs += [
            ("step_s", stage.step_s, seconds / num_steps),
            ("seconds", stage.seconds * done, seconds),
            ("energy_kwh", energy, energy_kwh),
            ("carbon_kg", energy * kg_per_kwh, energy_kwh * kg_per_kwh),
        ]
    return tuple(Beside(what=what, planned=float(planned), measured=float(found)) for what, planned, found in pairs if planned and found)
