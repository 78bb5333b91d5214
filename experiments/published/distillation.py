"""Published accuracies of distillation on CIFAR-100 and ImageNet, from the authors' repositories.

A method has one source for each pair. Figures that are known only from summaries are left out: FCFD, NKD and RLD.

The students of different repositories are not the same to the last bit, so differences of some tenths of a percent mean
little: NORM's authors repeated the plain students with 69.53 % (ResNet-20) and 72.87 % (ResNet-8x4).

The protocol of CIFAR-100 is that of CRD, with its teachers: 240 epochs, batch 64. MLKD's rows have twice the epochs.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from experiments.published.local import END_TO_END

TEACHER = "teacher"
CIFAR100, IMAGENET = "cifar100", "imagenet2012"
_OBJECTIVES = {"MLKD": "mlkd_two_views", "SD-KD": "sd_kd", "SD-DKD": "sd_dkd", "SD-NKD": "sd_nkd"} | {
    name: name.lower()
    for name in ("KD", "FitNet", "AT", "SP", "VID", "RKD", "PKT", "NST", "CRD", "ReviewKD", "SimKD", "DKD", "DIST",
                 "TTM", "WTTM")
}  # fmt: skip


@dataclass(frozen=True)
class Source:
    """Where a table was read.

    Attributes:
        name: the repository on GitHub.
        paper: the paper whose authors maintain it.
        kind: `README`, or `picture of the table`, which the repository has.
    """

    name: str
    paper: str
    kind: str = "README"


@dataclass(frozen=True)
class Published:
    """A published top-1 accuracy of a student.

    Attributes:
        data: name of the data set.
        teacher, student: names of the networks.
        method: name of the method; `KD + LS` is KD with standardised logits.
        accuracy: in percent.
        source: where it was read.
        epochs: passes through the training images; None if the source does not say.
        views: the number of augmented views of each image.
    """

    data: str
    teacher: str
    student: str
    method: str
    accuracy: float
    source: Source
    epochs: int | None
    views: int = 1

    @property
    def label(self) -> str:
        """The method, with the protocol where it needs more computation than that of the others."""
        return self.method if self.views == 1 else f"{self.method} ({self.epochs} epochs, {self.views} views)"

    @property
    def objective(self) -> str | None:
        """The objective in a config that has this method with its defaults, if any."""
        return _OBJECTIVES.get(self.method)


REPDISTILLER = Source("HobbitLong/RepDistiller", "CRD, Tian et al., ICLR 2020")
MDISTILLER = Source("megvii-research/mdistiller", "DKD and DOT, Zhao et al., CVPR 2022 and ICCV 2023")
NORM = Source("OSVAI/NORM", "NORM, Liu et al., ICLR 2023")
TTM = Source("zkxufo/TTM", "TTM and WTTM, Zheng and Yang, ICLR 2024")
LSKD = Source("sunshangquan/logit-standardization-KD", "logit standardisation, Sun et al., CVPR 2024")
DIST = Source("hunto/DIST_KD", "DIST, Huang et al., NeurIPS 2022")
SDD = Source("shicaiwei123/SDD-CVPR2024", "SDD, Wei et al., CVPR 2024", "picture of the table")

# Teacher and student of each column.
_SAME = ("resnet56-resnet20", "resnet110-resnet32", "resnet32x4-resnet8x4", "wrn_40_2-wrn_16_2", "wrn_40_2-wrn_40_1",
         "vgg13-vgg8", "resnet110-resnet20")  # fmt: skip
_OTHER = ("vgg13-mobilenetv2_half", "resnet50_cifar-mobilenetv2_half", "resnet50_cifar-vgg8",
          "resnet32x4-shufflenetv1", "resnet32x4-shufflenetv2", "wrn_40_2-shufflenetv1")  # fmt: skip
_FURTHER = ("resnet32x4-wrn_16_2", "resnet32x4-wrn_40_2", "wrn_40_2-resnet8x4", "wrn_40_2-mobilenetv2_half")
_IMAGENET = ("resnet34-resnet18", "resnet50-mobilenetv1")
_UNKNOWN = None  # in place of an accuracy

_Rows = Mapping[str, tuple[float | None, ...]]


def _table(
    source: Source, pairs: tuple[str, ...], rows: _Rows, *, epochs: int | None, data: str = CIFAR100, views: int = 1
) -> list[Published]:
    results = []
    for method, accuracies in rows.items():
        for pair, accuracy in zip(pairs, accuracies, strict=True):
            if accuracy is not None:
                teacher, student = pair.split("-")
                results.append(Published(data, teacher, student, method, accuracy, source, epochs, views))
    return results


# fmt: off
_ALONE: Mapping[str, tuple[Source, int | None, Mapping[str, float]]] = {
    CIFAR100: (REPDISTILLER, 240, {
        "resnet20": 69.06, "resnet32": 71.14, "resnet56": 72.34, "resnet110": 74.31, "resnet8x4": 72.50,
        "resnet32x4": 79.42, "wrn_16_2": 73.26, "wrn_40_1": 71.98, "wrn_40_2": 75.61, "vgg8": 70.36, "vgg13": 74.64,
        "mobilenetv2_half": 64.60, "shufflenetv1": 70.50, "shufflenetv2": 71.82, "resnet50_cifar": 79.34,
    }),
    IMAGENET: (TTM, None, {"resnet18": 69.76, "resnet34": 73.31, "mobilenetv1": 68.87, "resnet50": 76.16}),
}
"""Accuracies of networks that are trained end to end: the students alone, and the teachers."""

_RESULTS: tuple[Published, ...] = (
    *_table(REPDISTILLER, _SAME, {
        "KD": (70.66, 73.08, 73.33, 74.92, 73.54, 72.98, 70.67),
        "FitNet": (69.21, 71.06, 73.50, 73.58, 72.24, 71.02, 68.99),
        "AT": (70.55, 72.31, 73.44, 74.08, 72.77, 71.43, 70.22),
        "SP": (69.67, 72.69, 72.94, 73.83, 72.43, 72.68, 70.04),
        "VID": (70.38, 72.61, 73.09, 74.11, 73.30, 71.23, 70.16),
        "RKD": (69.61, 71.82, 71.90, 73.35, 72.22, 71.48, 69.25),
        "PKT": (70.34, 72.61, 73.64, 74.54, 73.45, 72.88, 70.25),
        "NST": (69.60, 71.96, 73.30, 73.68, 72.24, 71.53, 69.53),
        "CRD": (71.16, 73.48, 75.51, 75.48, 74.14, 73.94, 71.46),
    }, epochs=240),
    *_table(NORM, _SAME, {
        "ReviewKD": (71.89, 73.89, 75.63, 76.12, 75.09, 74.84, _UNKNOWN),
        "SimKD": (_UNKNOWN, _UNKNOWN, 78.08, _UNKNOWN, 75.56, _UNKNOWN, _UNKNOWN),
        "NORM + KD": (71.61, 73.95, 76.98, 76.26, 75.42, 74.46, 72.00),
    }, epochs=240),
    *_table(LSKD, _SAME, {
        "DKD": (71.97, 74.11, 76.32, 76.24, 74.81, 74.68, 71.06),
        "CTKD": (71.19, 73.52, 73.39, 75.45, 73.93, 73.52, 70.99),
        "KD + LS": (71.43, 74.17, 76.62, 76.11, 74.37, 74.36, 71.48),
        "DKD + LS": (72.32, 74.29, 77.01, 76.39, 74.89, 74.81, 71.85),
    }, epochs=240),
    *_table(LSKD, _SAME, {
        "MLKD": (72.19, 74.11, 77.08, 76.63, 75.35, 75.18, 71.89),
        "MLKD + LS": (72.33, 74.32, 78.28, 76.95, 75.56, 75.22, 72.27),
    }, epochs=480, views=2),
    *_table(TTM, _SAME, {
        "DIST": (71.75, 73.69, 76.31, 75.51, 74.73, 73.89, 71.65),
        "ITRD": (71.47, 74.26, 76.19, 76.12, 75.18, 74.93, 71.99),
        "TTM": (71.83, 73.97, 76.17, 76.23, 74.32, 74.33, 71.46),
        "WTTM": (71.92, 74.13, 76.06, 76.37, 74.58, 74.44, 71.67),
        "WTTM + CRD": (72.20, 74.52, 76.65, 76.61, 74.94, 74.71, 72.13),
        "WTTM + ITRD": (72.16, 74.36, 77.36, 76.65, 75.34, 75.13, 72.20),
    }, epochs=240),
    *_table(MDISTILLER, ("resnet32x4-resnet8x4", "vgg13-vgg8", "resnet32x4-shufflenetv2"), {
        "KD + DOT": (75.12, 73.77, 75.55),
    }, epochs=240),
    *_table(REPDISTILLER, _OTHER, {
        "KD": (67.37, 67.35, 73.81, 74.07, 74.45, 74.83),
        "FitNet": (64.14, 63.16, 70.69, 73.59, 73.54, 73.73),
        "AT": (59.40, 58.58, 71.84, 71.73, 72.73, 73.32),
        "SP": (66.30, 68.08, 73.34, 73.48, 74.56, 74.52),
        "VID": (65.56, 67.57, 70.30, 73.38, 73.40, 73.61),
        "RKD": (64.52, 64.43, 71.50, 72.28, 73.21, 72.21),
        "PKT": (67.13, 66.52, 73.01, 74.10, 74.69, 73.89),
        "NST": (58.16, 64.96, 71.28, 74.12, 74.68, 74.89),
        "CRD": (69.73, 69.11, 74.30, 75.11, 75.65, 76.05),
    }, epochs=240),
    *_table(NORM, _OTHER, {
        "ReviewKD": (70.37, 69.89, _UNKNOWN, 77.45, 77.78, 77.14),
        "NORM + KD": (69.38, 71.17, 75.67, 77.79, 78.32, 77.63),
    }, epochs=240),
    *_table(LSKD, ("vgg13-mobilenetv2_half", "resnet50_cifar-mobilenetv2_half", "resnet32x4-shufflenetv2"), {
        "KD + LS": (68.61, 69.02, 75.56),
        "DKD + LS": (69.98, 70.45, 77.37),
    }, epochs=240),
    *_table(LSKD, ("vgg13-mobilenetv2_half", "resnet50_cifar-mobilenetv2_half", "resnet32x4-shufflenetv2"), {
        "MLKD": (70.57, 71.04, 78.44),
        "MLKD + LS": (70.94, 71.19, 78.76),
    }, epochs=480, views=2),
    *_table(TTM, _OTHER, {
        "DKD": (69.71, 70.35, _UNKNOWN, 76.45, 77.07, 76.70),
        "DIST": (68.50, 68.66, 74.11, 76.34, 77.35, 76.40),
        "ITRD": (70.39, 71.41, 75.71, 76.91, 77.40, 77.35),
        "TTM": (68.98, 69.24, 74.87, 74.18, 76.57, 75.39),
        "WTTM": (69.16, 69.59, 74.82, 74.37, 76.55, 75.42),
        "WTTM + CRD": (70.30, 70.84, 75.30, 75.82, 77.04, 76.86),
        "WTTM + ITRD": (70.70, 71.56, 76.00, 77.03, 77.68, 77.44),
    }, epochs=240),
    *_table(SDD, _OTHER, {
        "SD-KD": (68.79, 69.55, 74.89, 76.30, 76.67, 76.65),
        "SD-DKD": (70.25, 71.36, 75.86, 77.30, 78.05, 77.21),
        "SD-NKD": (69.50, 70.25, 74.62, 76.34, 77.07, 76.81),
    }, epochs=240),
    *_table(LSKD, _FURTHER, {
        "KD": (74.90, 77.70, 73.97, 68.36),
        "KD + LS": (75.26, 77.92, 77.11, 69.23),
        "DKD": (75.70, 78.46, 75.56, 69.28),
        "DKD + LS": (76.19, 78.95, 76.75, 70.01),
    }, epochs=240),
    *_table(LSKD, _FURTHER, {
        "MLKD": (76.52, 79.26, 77.33, 70.78),
        "MLKD + LS": (77.53, 79.66, 77.68, 71.61),
    }, epochs=480, views=2),
    # Issue 69 of mdistiller reports that KD + DOT on ImageNet cannot be reproduced.
    *_table(MDISTILLER, _IMAGENET, {
        "KD": (71.03, 70.50),
        "DKD": (71.70, 72.05),
        "KD + DOT": (71.72, 73.09),
    }, epochs=100, data=IMAGENET),
    *_table(TTM, _IMAGENET, {
        "CRD": (71.17, 71.37),
        "ReviewKD": (71.61, 72.56),
        "WTTM": (72.19, 73.09),
    }, epochs=None, data=IMAGENET),
    *_table(DIST, _IMAGENET, {"DIST": (72.07, 73.24)}, epochs=None, data=IMAGENET),
    *_table(NORM, _IMAGENET, {"NORM": (72.14, 74.26)}, epochs=None, data=IMAGENET),
    *_table(SDD, ("resnet50-mobilenetv1",), {
        "SD-KD": (72.24,),
        "SD-DKD": (73.08,),
        "SD-NKD": (73.12,),
    }, epochs=None, data=IMAGENET),
)
# fmt: on


def published_results(data: str, *, student: str, teacher: str) -> tuple[Published, ...]:
    """The published results for a pair of networks: the student alone, the teacher, and the methods; empty if none."""
    found = tuple(
        result for result in _RESULTS if (result.data, result.student, result.teacher) == (data, student, teacher)
    )
    if not found:
        return ()
    source, epochs, accuracies = _ALONE[data]
    alone = {END_TO_END: accuracies[student], TEACHER: accuracies[teacher]}
    return (
        *(Published(data, teacher, student, name, accuracy, source, epochs) for name, accuracy in alone.items()),
        *found,
    )


def chosen(results: Sequence[Published], objectives: Collection[str]) -> list[Published]:
    """The results to compare a sweep with: the student alone, the teacher, KD, the objectives of the sweep, the best.

    Args:
        results: the results for a pair.
        objectives: names of objectives, as in configs.
    """
    usual = {END_TO_END, TEACHER, "KD"}
    best = max(
        (result for result in results if result.method != TEACHER), key=lambda result: result.accuracy, default=None
    )
    return [result for result in results if result is best or result.method in usual or result.objective in objectives]


def published_pairs(data: str) -> tuple[str, ...]:
    """The pairs `TEACHER-STUDENT` with published results, in the order of the tables."""
    return tuple(dict.fromkeys(f"{result.teacher}-{result.student}" for result in _RESULTS if result.data == data))
