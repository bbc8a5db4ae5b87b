"""The nouns of the project: pure data, no I/O.

Read in this order: `Slice` and `Group` (which entries of which tensors live or die together), `Structure` (all groups of a
network), `Scores` (one number per node), `Plan` (what is kept), `Origin` (where a network comes from).
"""

from compressor.settings import Attention
from compressor.types.curves import Curve, Sensitivity
from compressor.types.mask import Mask
from compressor.types.origin import InputSpec, Origin
from compressor.types.plan import Event, Plan, fingerprint
from compressor.types.reason import NOT_IN_EVAL, OUTPUT, Cause, Reason
from compressor.types.scores import Scores
from compressor.types.structure import (
    Group,
    Kept,
    Role,
    Slice,
    Structure,
    Tie,
    total_by_layer,
)

__all__ = [
    "NOT_IN_EVAL",
    "OUTPUT",
    "Attention",
    "Cause",
    "Curve",
    "Event",
    "Group",
    "InputSpec",
    "Kept",
    "Mask",
    "Origin",
    "Plan",
    "Reason",
    "Role",
    "Scores",
    "Sensitivity",
    "Slice",
    "Structure",
    "Tie",
    "fingerprint",
    "total_by_layer",
]
