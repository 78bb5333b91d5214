"""Every method there is, small: what the table of contract tests goes through."""

import optax

from kd_local.contract import Method
from kd_local.local import HEADS, LOSSES, ContSup, EndToEnd, cut
from kd_local.models import resnet

OPTIMIZER = optax.chain(optax.add_decayed_weights(1e-4), optax.sgd(0.1, momentum=0.9, nesterov=True))
NETWORK = resnet(8, classes=10)


def contsup(context: str, *, head: str = "1c2f", loss: str = "softmax", modules: int = 4) -> ContSup:
    return ContSup(cut(NETWORK, modules, classes=10, context=context, head=head, loss=loss), OPTIMIZER)


METHODS: dict[str, Method] = {
    "end_to_end": EndToEnd(NETWORK, OPTIMIZER),
    "end_to_end remat": EndToEnd(NETWORK, OPTIMIZER, remat=True),
    **{f"contsup {context}": contsup(context) for context in ("R0", "E", "R1", "R1E", "R2", "R3E")},
    **{f"contsup R0 {head}": contsup("R0", head=head) for head in HEADS},
    **{f"contsup R1E {loss}": contsup("R1E", loss=loss) for loss in LOSSES},
    "contsup K=1": contsup("R1E", modules=1),
    "contsup K=blocks": contsup("R1E", modules=len(NETWORK)),
}
