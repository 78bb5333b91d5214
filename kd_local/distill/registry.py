"""Objectives by the names that configs use."""

from kd_local.distill.attention import AT
from kd_local.distill.block_kd import BlockKD
from kd_local.distill.crd import CRD
from kd_local.distill.dist import DIST
from kd_local.distill.dkd import DKD
from kd_local.distill.fitnet import FitNet
from kd_local.distill.kd import KD
from kd_local.distill.mlkd import MLKD
from kd_local.distill.nst import NST
from kd_local.distill.objective import Objective
from kd_local.distill.ofd import OFD
from kd_local.distill.pkt import PKT
from kd_local.distill.reviewkd import ReviewKD
from kd_local.distill.rkd import RKD
from kd_local.distill.similarity import SP
from kd_local.distill.simkd import SimKD
from kd_local.distill.vid import VID

OBJECTIVES: dict[str, type[Objective]] = {
    "kd": KD,
    "dkd": DKD,
    "mlkd": MLKD,
    "dist": DIST,
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
    "block_kd": BlockKD,
}
