"""Search of split ratios: DPConv in a network, its objective, and the plan that comes out."""

from .network import dynamic_layers, make_dynamic, settle
from .objective import Objective
from .plan import Plan, load_plan

__all__ = ["Objective", "Plan", "dynamic_layers", "load_plan", "make_dynamic", "settle"]
