"""Objectives by the names that configs use."""

from kd_local.distill.objective import Objective
from kd_local.distill.objectives.at import AT
from kd_local.distill.objectives.block_kd import BlockKD
from kd_local.distill.objectives.crd import CRD
from kd_local.distill.objectives.crld import CRLD
from kd_local.distill.objectives.distances import LOGIT_OBJECTIVES
from kd_local.distill.objectives.fcfd import FCFD
from kd_local.distill.objectives.fitnet import FitNet
from kd_local.distill.objectives.mlkd_two_views import MLKDTwoViews
from kd_local.distill.objectives.nst import NST
from kd_local.distill.objectives.ofa import OFA
from kd_local.distill.objectives.ofd import OFD
from kd_local.distill.objectives.pkt import PKT
from kd_local.distill.objectives.reviewkd import ReviewKD
from kd_local.distill.objectives.rkd import RKD
from kd_local.distill.objectives.sdd import SDDKD, SDKD, SDNKD
from kd_local.distill.objectives.simkd import SimKD
from kd_local.distill.objectives.sp import SP
from kd_local.distill.objectives.vid import VID

OBJECTIVES: dict[str, type[Objective]] = {
    **LOGIT_OBJECTIVES,
    "crld": CRLD,
    "mlkd_two_views": MLKDTwoViews,
    "sd_kd": SDKD,
    "sd_dkd": SDDKD,
    "sd_nkd": SDNKD,
    "fitnet": FitNet,
    "at": AT,
    "sp": SP,
    "rkd": RKD,
    "pkt": PKT,
    "nst": NST,
    "vid": VID,
    "crd": CRD,
    "ofd": OFD,
    "reviewkd": ReviewKD,
    "simkd": SimKD,
    "ofa": OFA,
    "block_kd": BlockKD,
    "fcfd": FCFD,
}
