"""The reference form of HPFF and MLAAN: one function with the two chains x and y, as in the authors' code.

It needs three modules or more.
"""

from typing import Any

import jax
import jax.numpy as jnp

from kd_local.local import HPFF, MLAAN, PairTraining
from kd_local.local.decoders import Decoder
from kd_local.local.mlaan import leaping_blocks
from kd_local.local.pair import INDEPENDENT_HEAD


class Reference:
    """The two chains by hand. `params` and `stats` have the structure of the parts of the state."""

    def __init__(self, method: PairTraining, params: Any, stats: Any, averages: Any) -> None:
        self.method, self.network, self.params, self.averages = method, method.cut_network.network, params, averages
        self.stats = jax.tree.map(lambda x: x, stats)

    def net(self, part: str, name: str, module: Any, *inputs: Any, params: Any = None) -> Any:
        """Applies a network in training mode; its statistics are updated at once."""
        place = self.stats[part]
        own = {"params": self.params[part][name] if params is None else params, "batch_stats": place.get(name, {})}
        output, updated = module.apply(own, *inputs, train=True, mutable=["batch_stats"])
        if updated:
            place[name] = updated["batch_stats"]
        return output

    def blocks(self, number: int, x: Any, start: int = 0) -> Any:
        module = self.method.cut_network.modules[number]
        part = module.name
        for i in range(start, len(module.names)):
            own = {
                "params": self.params[part]["blocks"][str(i)],
                "batch_stats": self.stats[part].get("blocks", {}).get(str(i), {}),
            }
            x, updated = module.blocks[str(i)].apply(own, x, train=True, mutable=["batch_stats"])
            if updated:
                self.stats[part]["blocks"] = {**self.stats[part]["blocks"], str(i): updated["batch_stats"]}
        return x

    def stem(self, images: Any) -> Any:
        module = self.method.cut_network.modules[0]
        own = {
            "params": self.params[module.name]["blocks"]["0"],
            "batch_stats": self.stats[module.name]["blocks"]["0"],
        }
        x, updated = module.blocks["0"].apply(own, images, train=True, mutable=["batch_stats"])
        self.stats[module.name]["blocks"] = {**self.stats[module.name]["blocks"], "0": updated["batch_stats"]}
        return x

    def loss(self, images: Any, labels: Any) -> Any:
        def ce(logits: Any) -> Any:
            return -jax.nn.log_softmax(logits)[jnp.arange(len(labels)), labels].mean()

        modules, total = self.method.cut_network.modules, 0.0
        count, stem = len(modules), self.stem(images)
        x, y = jax.lax.stop_gradient(self.blocks(0, jax.lax.stop_gradient(stem), 1)), stem
        for i in range(1, count - 1):
            x, y = self.blocks(i, x), self.blocks(i - 1, y, 1 if i == 1 else 0)
            z = self.blocks(i, y)
            part, head = modules[i - 1].name, modules[i].auxiliary.network
            total += self.method.rule.weight_x * ce(self.net(part, INDEPENDENT_HEAD, head, x))
            total += self.method.rule.weight_y * self.strong(part, i, i / (count - 2), z, images, ce)
            x, y = map(jax.lax.stop_gradient, (x, y))
        x, z = self.blocks(count - 1, x), self.blocks(count - 1, self.blocks(count - 2, y))
        weights = self.last_weights()
        return total + weights[0] * ce(x) + weights[1] * ce(z)

    def last_weights(self) -> tuple[float, float]:
        rule = self.method.rule
        return (0.0, 1.0) if isinstance(rule, MLAAN) and rule.faithful else (rule.weight_x, rule.weight_y)

    def strong(self, part: str, i: int, ratio: float, z: Any, images: Any, ce: Any) -> Any:
        rule, head = self.method.rule, self.method.cut_network.modules[i].auxiliary.network
        if isinstance(rule, HPFF):
            if rule.faithful:
                logits = self.net(part, "head", head, z)
            else:
                parts = [self.quadrant(z, q) for q in range(4)]
                joined = jnp.stack(parts, 1).reshape(-1, *parts[0].shape[1:])
                own = self.params[part]["head"]["head"]
                logits = head.apply({"params": own}, joined, train=True).reshape(-1, 4, head.outputs).mean(axis=1)
            if self.method.cut_network.modules[i].reconstruction is None:
                return ce(logits)
            a = rule.reconstruction_first * (1 - ratio) + rule.reconstruction_last * ratio
            b = rule.head_first * (1 - ratio) + rule.head_last * ratio
            return a * self.reconstruction(part, z, images) + b * ce(logits)
        names, number = leaping_blocks(self.network, self.method.cut_network.boundaries, i), i
        average = jax.lax.stop_gradient(self.averages[f"average{number:02d}"]["0"])
        first = self.network[names[0]]
        z = self.net(part, "leap0", first, z) + self.net(part, "average", first, z, params=average)
        for j, name in enumerate(names[1:], 1):
            z = self.net(part, f"leap{j}", self.network[name], z)
        return ce(self.net(part, "head", head, z))

    @staticmethod
    def quadrant(x: Any, q: int) -> Any:
        rows, columns = x.shape[1] // 2, x.shape[2] // 2
        top, left = q // 2 * rows, q % 2 * columns
        return x[:, top : top + rows, left : left + columns]

    def reconstruction(self, part: str, z: Any, images: Any) -> Any:
        scale = self.method.cut_network.modules[0].reconstruction.pixels
        std, mean = (jnp.asarray(numbers).reshape(1, 1, 1, 3) / 255 for numbers in (scale.std, scale.mean))
        pixels = images * std + mean

        def bce(logits: Any, targets: Any) -> Any:
            return -(targets * jax.nn.log_sigmoid(logits) + (1 - targets) * jax.nn.log_sigmoid(-logits)).mean()

        params, stats = self.params[part]["decoder"], self.stats[part]["decoder"]
        features, targets = ([self.quadrant(t, q) for q in range(4)] for t in (z, pixels))
        if not self.method.rule.faithful:
            features, targets = ([jnp.stack(t, 1).reshape(-1, *t[0].shape[1:])] for t in (features, targets))
        total, updated = 0.0, {}
        for q, (feature, target) in enumerate(zip(features, targets, strict=True)):
            own = {"params": params[f"decoder{q}"], "batch_stats": stats[f"decoder{q}"]}
            logits, new = Decoder().apply(own, feature, target, train=True, mutable=["batch_stats"])
            updated[f"decoder{q}"] = new["batch_stats"]
            total += bce(logits, target)
        self.stats[part]["decoder"] = updated
        return total
