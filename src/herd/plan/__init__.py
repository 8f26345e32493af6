"""What training and serving take, computed before and accounted after: memory, time, failures, energy, cost and carbon. No torch.

    from herd.plan import Batch, Mesh, best_meshes, serve_plan, train_plan

`train_plan` plans a run on a given mesh, `best_meshes` looks for one, `serve_plan` plans a served model, `account` tells what device hours
come to. All of them are closed forms over a `ModelConfig`; tracing a real rank is `train.parallel`'s, and what the engine allocates here
`engine.memory`'s.
"""

from herd.plan.accounting import Account, Power, account, account_energy
from herd.plan.assumptions import Assumptions, default_assumptions
from herd.plan.failures import Effective, Reliability, effective_time
from herd.plan.hardware import Device, find_device
from herd.plan.memory import RankMemory
from herd.plan.mesh import Batch, Mesh
from herd.plan.search import Found, best_meshes
from herd.plan.serve import ServePlan, serve_plan
from herd.plan.step_time import StepTime
from herd.plan.train import Beside, Measured, RunPlan, TrainPlan, train_plan

__all__ = [
    "Account",
    "Assumptions",
    "Batch",
    "Beside",
    "Device",
    "Effective",
    "Found",
    "Measured",
    "Mesh",
    "Power",
    "RankMemory",
    "Reliability",
    "RunPlan",
    "ServePlan",
    "StepTime",
    "TrainPlan",
    "account",
    "account_energy",
    "best_meshes",
    "default_assumptions",
    "effective_time",
    "find_device",
    "serve_plan",
    "train_plan",
]
