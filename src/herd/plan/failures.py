"""Time that failures take: how often something breaks, how often to save, and what share of the wall clock trains.

Interruptions come at random with a rate for each device, so a run of n devices has a mean time between them of M = device hours / n. With
a save that takes C and a restart that takes R, Daly's optimum between saves is, for C < 2 M,
    t = sqrt(2 C M) (1 + sqrt(C / 2 M) / 3 + (C / 2 M) / 9) - C,
and work of T seconds takes M exp(R / M) (exp((t + C) / M) - 1) T / t. Young's older optimum is sqrt(2 C M).
J. T. Daly, "A higher order estimate of the optimum checkpoint interval for restart dumps", 2006.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from herd.base.errors import ConfigError
from herd.model.config import ModelConfig
from herd.plan.hardware import Device
from herd.plan.mesh import Precision
from herd.plan.precision import STATE_BYTES

OBSERVED_DAYS, OBSERVED_DEVICES, UNEXPECTED, PLANNED = 54, 16_384, 419, 47
"""Llama 3 report, section 3.3.4: 54 days on 16,384 GPUs with 466 interruptions, 419 of them unexpected and 47 planned."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reliability:
    """How often runs are interrupted and what each interruption costs.

    Attributes:
        device_hours: of one device between unexpected interruptions; the report's observation.
        planned_device_hours: between planned ones; infinity leaves them out.
        restart_s: from an interruption until the run trains again: noticing it, replacing the node, starting processes and collectives,
            loading. The report does not print it; ten minutes is our assumption, and its own 92 % follows from it.
    """

    device_hours: float = OBSERVED_DAYS * 24 * OBSERVED_DEVICES / UNEXPECTED
    planned_device_hours: float = OBSERVED_DAYS * 24 * OBSERVED_DEVICES / PLANNED
    restart_s: float = 600.0

    def __post_init__(self) -> None:
        for name in ("device_hours", "planned_device_hours"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}, it must be over 0", hint="the report's devices ran 50,700 hours each")
        if not 0 <= self.restart_s < math.inf:
            raise ConfigError(f"restart_s is {self.restart_s}, it must be 0 or more", hint="ten minutes is the default")


@dataclass(frozen=True, kw_only=True, slots=True)
class Effective:
    """What failures leave.

    Attributes:
        interruption_hours: between unexpected interruptions of the whole run.
        mean_s: between interruptions of both kinds.
        save_s: one save.
        interval_s: between saves, the best by Daly.
        young_s: the same by Young.
        saving, lost, restarting: shares of the wall clock that go to saves, to work that is done again, to restarts.
        share: effective training time.
    """

    interruption_hours: float
    mean_s: float
    save_s: float
    restart_s: float
    interval_s: float
    young_s: float
    saving: float
    lost: float
    restarting: float
    share: float


_HOPELESS = 20
"""Restarts that last so many times as long as machines do succeed once in e^20 tries."""


def best_interval_s(save_s: float, mean_s: float) -> float:
    """Seconds of work between saves that lose least, by Daly."""
    if save_s >= 2 * mean_s:
        return mean_s
    ratio = save_s / (2 * mean_s)
    return math.sqrt(2 * save_s * mean_s) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - save_s


def wall_factor(interval_s: float, *, save_s: float, restart_s: float, mean_s: float) -> float:
    """Expected wall clock over work."""
    return mean_s * math.exp(restart_s / mean_s) * math.expm1((interval_s + save_s) / mean_s) / interval_s


def effective_time(num_devices: int, save_s: float, reliability: Reliability | None = None) -> Effective:
    """What share of the wall clock trains, with the best interval between saves. Raises ConfigError for a save that takes no time,
    and where restarts or saves last so much longer than machines that they never end.
    """
    if not 0 < save_s < math.inf:
        raise ConfigError(f"a save takes {save_s} s, it must be over 0", hint="bytes of the state over the storage's bandwidth")
    kind = reliability or Reliability()
    mean = 3600 / num_devices / (1 / kind.device_hours + 1 / kind.planned_device_hours)
    if max(save_s, kind.restart_s) > _HOPELESS * mean:
        raise ConfigError(
            f"with an interruption every {mean:,.0f} s, restarts of {kind.restart_s:,.0f} s and saves of {save_s:,.0f} s never end",
            hint="plan with quicker restarts, faster storage or fewer devices",
        )
    interval = best_interval_s(save_s, mean)
    factor = wall_factor(interval, save_s=save_s, restart_s=kind.restart_s, mean_s=mean)
    share = 1 / factor
    saving = share * save_s / interval
    restarting = min(kind.restart_s / mean, 1 - share - saving)
    return Effective(
        interruption_hours=kind.device_hours / num_devices,
        mean_s=mean,
        save_s=save_s,
        restart_s=kind.restart_s,
        interval_s=interval,
        young_s=math.sqrt(2 * save_s * mean),
        saving=saving,
        restarting=restarting,
        lost=max(0.0, 1 - share - saving - restarting),
        share=share,
    )


STORAGE_SHARE_GB_PER_S = 2000 / 24_576
"""What a device has of the storage where nothing else is known: the report's 2 TB/s over its 24,576 GPUs."""
_LOCAL_GB_PER_S = 2.0


def save_s(config: ModelConfig, device: Device, num_devices: int, precision: Precision) -> float:
    """Seconds to write masters and moments to storage, while nothing trains: what asynchronous saves hide is a gain on top."""
    rate = device.storage_gb_per_s or max(_LOCAL_GB_PER_S, num_devices * STORAGE_SHARE_GB_PER_S)
    state = STATE_BYTES[precision]
    per_parameter = state.optimizer + (state.parameter if precision in ("fp32", "bf16-pure") else 0)
    return config.num_parameters * per_parameter / (rate * 1e9)
