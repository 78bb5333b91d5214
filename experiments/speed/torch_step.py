"""Training steps in PyTorch, for comparison: end to end, greedy local learning with contexts, and KD.

After each module's loss comes its backward call, which frees its activations. The step ends with one update of all
parameters. Images are random, normalised and on the device.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from ml_collections import ConfigDict

from experiments.from_config.experiment import build
from experiments.speed.rows import SpeedRow, configured
from experiments.speed.torch_network import CutResNet
from kd_local.local import ContSup, cut
from kd_local.models import create

TEMPERATURE, KD_WEIGHT, LABEL_WEIGHT = 4.0, 0.9, 0.1


class TorchStep:
    """A row's step in PyTorch.

    Attributes:
        predicted_bytes, multiply_adds, codes: None, because PyTorch reports neither.
    """

    predicted_bytes = multiply_adds = codes = None

    def __init__(self, row: SpeedRow, config: ConfigDict, steps: int) -> None:
        config = configured(row, config)
        experiment = build(config, fresh_teachers=True)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.manual_seed(0)
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
        layout = torch.channels_last if row.form.startswith("channels_last") else torch.contiguous_format
        classes, channels = 10, experiment.shape[-1]
        method = experiment.method
        cut_network = method.cut_network if isinstance(method, ContSup) else cut(experiment.network, 1, classes=classes)
        network: Any = CutResNet(cut_network, classes, channels).to(device, memory_format=layout)
        teacher: Any = None
        if row.method == "kd":
            whole = cut(create(config.teacher.network, classes=classes), 1, classes=classes)
            teacher = CutResNet(whole, classes, channels).to(device, memory_format=layout).eval()
        self._network, self._device = network, device
        self._dtype = torch.bfloat16 if row.dtype == "bfloat16" else None
        self._optimizer = torch.optim.SGD(
            network.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=1e-4, fused=device.type == "cuda"
        )
        shape = (config.batch_size, channels, *experiment.shape[:2])
        self._images = torch.randn(shape, device=device).to(memory_format=layout)
        self._labels = torch.randint(classes, shape[:1], device=device)
        compiled = _compiled if row.form.endswith("+compile") else lambda function: function
        self._modules = None
        if row.method == "contsup":
            self._modules = [
                # One function for each module, so that each is compiled for its shapes.
                compiled(lambda *given, i=i: network.module_loss(i, *given))
                for i in range(len(cut_network.modules))
            ]
        self._loss = compiled(lambda images, labels: whole_loss(network, teacher, images, labels))
        self.dispatch(1).block_until_ready()  # compiles, and chooses the algorithms of convolutions

    def step(self) -> list[torch.Tensor]:
        """Starts a step. Returns the loss, or that of each module."""
        self._optimizer.zero_grad(set_to_none=True)
        precision = torch.autocast(self._device.type, self._dtype, enabled=self._dtype is not None)
        if self._modules is not None:
            losses = greedy_backward(self._network, self._modules, self._images, self._labels, precision)
        else:
            with precision:
                loss = self._loss(self._images, self._labels)
            loss.backward()
            losses = [loss.detach()]
        self._optimizer.step()
        return losses

    def dispatch(self, steps: int) -> "TorchStep":
        """Starts n steps."""
        for _ in range(steps):
            self.step()
        return self

    def block_until_ready(self) -> None:
        """Waits for the steps that were started."""
        if self._device.type == "cuda":
            torch.cuda.synchronize()

    @property
    def device(self) -> str:
        """The kind of the device."""
        return torch.cuda.get_device_name(self._device) if self._device.type == "cuda" else "cpu"

    @property
    def measured_bytes(self) -> int | None:
        """Peak memory of PyTorch's allocator on the device; None on the CPU."""
        return torch.cuda.max_memory_allocated() if self._device.type == "cuda" else None


def whole_loss(network: Any, teacher: Any, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The loss end to end or, with a teacher, that of KD."""
    logits = network(images)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    loss = F.cross_entropy(logits, labels)
    if teacher is None:
        return loss
    with torch.no_grad():
        teacher_logits = teacher(images).to(logits.dtype)
    return LABEL_WEIGHT * loss + KD_WEIGHT * distillation_loss(logits, teacher_logits)


def distillation_loss(logits: torch.Tensor, teacher_logits: torch.Tensor) -> torch.Tensor:
    """The divergence of Hinton et al. (2015) between the softened distributions, times the squared temperature."""
    targets = F.softmax(teacher_logits / TEMPERATURE, dim=1)
    student = F.log_softmax(logits / TEMPERATURE, dim=1)
    return TEMPERATURE**2 * F.kl_div(student, targets, reduction="batchmean")


def greedy_backward(
    network: Any,
    module_losses: Sequence[Callable[..., Any]],
    images: torch.Tensor,
    labels: torch.Tensor,
    precision: Any,
) -> list[torch.Tensor]:
    """Computes each module's loss and, at once, its gradients. Returns the losses.

    Args:
        network: a `CutResNet`.
        module_losses: `CutResNet.module_loss` of each module, perhaps compiled.
        images, labels: the batch.
        precision: the context manager of the forward passes.
    """
    tensors, losses = {"images": images}, []
    for module, module_loss in zip(network.modules_of, module_losses, strict=True):
        with precision:
            loss, output, x = module_loss(labels, *(tensors[name] for name in module.reads))
        loss.backward()
        losses.append(loss.detach())
        tensors.update(zip(module.writes, (output.detach(), x.detach()), strict=False))
    return losses


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    # Modules share the code of one function: beyond the limit, PyTorch would run them without compilation.
    torch._dynamo.config.recompile_limit = 1000
    return torch.compile(function, fullgraph=True, dynamic=False)
