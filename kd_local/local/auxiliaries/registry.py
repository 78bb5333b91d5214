"""The rules for auxiliary networks by name."""

from collections.abc import Mapping

from kd_local.local.auxiliaries.auglocal import AugLocal
from kd_local.local.auxiliaries.head import HeadRule
from kd_local.local.auxiliaries.momentum import Momentum
from kd_local.local.auxiliary import AuxiliaryRule

AUXILIARIES: Mapping[str, type[AuxiliaryRule]] = {
    "head": HeadRule,
    "auglocal": AugLocal,
    "momentum": Momentum,
}
