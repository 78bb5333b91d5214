"""The rows of the speed table, and the messages between the program and a row's process."""

from dataclasses import dataclass

from ml_collections import ConfigDict

from kd_local.errors import unknown

SEPARATE, JOINED, SCANNED = FORMS = ("separate", "joined", "scanned")
"""`scanned`: a round is one call of joined steps (`steps_per_call`), and the device holds the training images."""
PYTORCH, END_TO_END = "pytorch", "end_to_end"
LAYOUTS = ("nchw", "channels_last")
DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class SpeedRow:
    """A row of the speed table.

    Attributes:
        method: `end_to_end`, `contsup`, or an objective of distillation.
        context: the context of `contsup`; None for other methods.
        modules: K of `contsup`; 1 for other methods.
        form: one of `FORMS`; for PyTorch one of `LAYOUTS`, with `+compile` if `torch.compile` compiles it.
        dtype: one of `DTYPES`. PyTorch computes in bfloat16 by autocast.
        framework: `jax` or `pytorch`.
    """

    method: str
    context: str | None
    modules: int
    form: str
    dtype: str
    framework: str = "jax"

    def __post_init__(self) -> None:
        for what, value, known in (
            ("form", self.form.removesuffix("+compile"), FORMS if self.framework == "jax" else LAYOUTS),
            ("dtype", self.dtype, DTYPES),
        ):
            if value not in known:
                raise unknown(what, value, known)

    def __str__(self) -> str:
        words = [self.method, self.context, f"K={self.modules}" if self.context else None, self.form, self.dtype]
        return " ".join(filter(None, [*words, self.framework if self.framework != "jax" else None]))

    @property
    def cached(self) -> bool:
        """Whether its executables are stored in a cache."""
        return self.framework != PYTORCH or self.form.endswith("+compile")

    @property
    def work(self) -> tuple[str, str | None, int, str]:
        """A key that is equal for rows of the same step and precision, in any form and framework."""
        return self.method, self.context, self.modules, self.dtype

    def reference(self, other: "SpeedRow") -> str | None:
        """What the other row is for this one: `end_to_end` in the same form and precision, `pytorch` for the same step
        in PyTorch, or None."""
        if other == self:
            return None
        if other.framework == PYTORCH and self.framework != PYTORCH and other.work == self.work:
            return PYTORCH
        same = (other.form, other.dtype, other.framework) == (self.form, self.dtype, self.framework)
        return END_TO_END if same and other.method == END_TO_END else None


def configured(row: SpeedRow, base: ConfigDict) -> ConfigDict:
    """A copy of the config with the keys of a row set."""
    config = base.copy_and_resolve_references()
    with config.unlocked():
        config.method = row.method
        config.network.dtype = config.teacher.dtype = row.dtype
        config.mesh.data = config.mesh.module = 1
        if row.context is not None:
            config.local.context, config.local.modules = row.context, row.modules
        else:  # what only modules have, such as boundaries by name
            config.local.context, config.local.modules = "R0", 1
            config.local.decoder, config.local.boundaries = False, "equal"
    return config
