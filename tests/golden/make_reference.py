"""Makes contsup_reference.npz: one training step of a small ContSup network in float64, by plain PyTorch.

    python make_reference.py        (needs torch and numpy, nothing of this package)

The network is a ResNet-8 of widths 4, 4, 8, 8, cut behind the stem and the first two stages, with context R2E, heads
1c2f of feature width 8, the contrastive loss and decoders; heads, decoders and image encoders have half their usual
width. In the file, images and features are NHWC, all else is in PyTorch's layout and by the names of the ContSup
authors' code:

    images (0 to 255), labels, mean, std, loss_scale     what goes in
    state/NAME                                           weights and statistics before the step
    eval_logits, train_logits, module_losses             what comes out
    gradients, statistics                                of the step and after it, flat, one behind the other in the
                                                         order of state/
    piece/...                                            of the last boundary: what each small network reads and gives

Reference: Yu et al., arXiv 2312.07636; the contrastive loss is Khosla et al., NeurIPS 2020, eq. 2.
"""

from pathlib import Path

import numpy as np

if __name__ == "__main__":  # whoever only looks at this file, as pytest does, needs no PyTorch
    import torch
    from torch.nn import functional

WIDTHS = (4, 4, 8, 8)
BLOCKS = ((0, 0), (1, 0), (2, 0), (3, 0))  # stage and block; the stem is 0, 0
BOUNDARIES = BLOCKS[:-1]
RECENT, IMAGE = 2, True
CLASSES, FEATURES, TEMPERATURE = 5, 8, 0.07
MEAN, STD = (125.3, 123.0, 113.9), (63.0, 62.1, 66.7)
LOSS_SCALE = (5.0, 0.5, 1.0, 2.0)


def make_state():
    """Random weights and statistics, exact in float32."""
    random, state = np.random.default_rng(0), {}

    def weights(name, *shape, bias):
        state[f"{name}.weight"] = random.standard_normal(shape) * (2 / np.prod(shape[1:])) ** 0.5
        if bias:
            state[f"{name}.bias"] = random.uniform(-0.5, 0.5, shape[0])

    def conv_norm(convolution, norm, features, inputs, size=3, bias=False):
        weights(convolution, features, inputs, size, size, bias=bias)
        for entry, middle in (("weight", 1), ("bias", 0), ("running_mean", 0), ("running_var", 1)):
            state[f"{norm}.{entry}"] = random.uniform(middle - 0.5, middle + 0.5, features)

    conv_norm("conv1", "bn1", WIDTHS[0], 3)
    for stage in (1, 2, 3):
        name, inputs, features = f"layer{stage}.0", WIDTHS[stage - 1], WIDTHS[stage]
        conv_norm(f"{name}.conv1", f"{name}.bn1", features, inputs)
        conv_norm(f"{name}.conv2", f"{name}.bn2", features, features)
        if stage > 1:
            conv_norm(f"{name}.downsample.0", f"{name}.downsample.1", features, inputs, size=1)
    weights("fc", CLASSES, WIDTHS[3], bias=True)
    for k, (stage, block) in enumerate(BOUNDARIES):
        width = WIDTHS[stage]
        head = f"aux_classifier_{stage}_{block}.head"
        conv_norm(f"{head}.0", f"{head}.1", width, width)
        weights(f"{head}.5", FEATURES // 2, width, bias=True)
        weights(f"{head}.7", FEATURES, FEATURES // 2, bias=True)
        decoder = f"decoder_{stage}_{block}.decoder"
        conv_norm(f"{decoder}.0", f"{decoder}.1", 6, width, bias=True)
        weights(f"{decoder}.3", 3, 6, 3, 3, bias=True)
        encoder = f"cont_sup_node.encoder_{k}.encoder"
        conv_norm(f"{encoder}.0", f"{encoder}.1", 6, 3, bias=True)
        conv_norm(f"{encoder}.3", f"{encoder}.4", width, 6, bias=True)
        for slot in range(min(k, RECENT)):
            encoder = f"cont_sup_node.resencoder_{k}_{slot}.encoder"
            source = WIDTHS[BOUNDARIES[k - 1 - slot][0]]
            conv_norm(f"{encoder}.0", f"{encoder}.1", width, source, size=1, bias=True)
    return {name: value.astype(np.float32) for name, value in state.items()}


def conv(p, name, x, stride=1):
    weight = p[f"{name}.weight"]
    return functional.conv2d(x, weight, p.get(f"{name}.bias"), stride=stride, padding=weight.shape[-1] // 2)


def conv_norm(p, convolution, norm, x, train, stride=1):
    mean, var = p[f"{norm}.running_mean"], p[f"{norm}.running_var"]  # in training mode they are updated in place
    x = conv(p, convolution, x, stride)
    return functional.batch_norm(x, mean, var, p[f"{norm}.weight"], p[f"{norm}.bias"], train, momentum=0.1, eps=1e-5)


def linear(p, name, x):
    return functional.linear(x, p[f"{name}.weight"], p[f"{name}.bias"])


def backbone_block(p, stage, block, x, train):
    if stage == 0:
        return conv_norm(p, "conv1", "bn1", x, train).relu()
    name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
    y = conv_norm(p, f"{name}.conv1", f"{name}.bn1", x, train, stride).relu()
    y = conv_norm(p, f"{name}.conv2", f"{name}.bn2", y, train)
    if f"{name}.downsample.0.weight" in p:
        x = conv_norm(p, f"{name}.downsample.0", f"{name}.downsample.1", x, train, stride)
    return (y + x).relu()


def local_head(p, name, x, train):
    stride = 2 if x.shape[1] < 64 else 1
    x = conv_norm(p, f"{name}.head.0", f"{name}.head.1", x, train, stride).relu().mean((2, 3))
    return linear(p, f"{name}.head.7", linear(p, f"{name}.head.5", x).relu())


def decode(p, name, x, size, train):
    x = functional.interpolate(x, size, mode="bilinear", align_corners=True)
    x = conv_norm(p, f"{name}.decoder.0", f"{name}.decoder.1", x, train).relu()
    return conv(p, f"{name}.decoder.3", x).sigmoid()


def encode_images(p, name, images, size, train):
    x = conv_norm(p, f"{name}.encoder.0", f"{name}.encoder.1", images, train).relu()
    x = conv_norm(p, f"{name}.encoder.3", f"{name}.encoder.4", x, train).relu()
    return functional.adaptive_avg_pool2d(x, size)


def encode_features(p, name, x, size, train):
    return functional.adaptive_avg_pool2d(conv_norm(p, f"{name}.encoder.0", f"{name}.encoder.1", x, train).relu(), size)


def contrast(features, labels):
    z = functional.normalize(features)
    similarity = (z @ z.T / TEMPERATURE).fill_diagonal_(-torch.inf)
    log_probability = similarity.log_softmax(1)
    total = torch.zeros((), dtype=z.dtype)
    for i, label in enumerate(labels):
        positives = [j for j, other in enumerate(labels) if other == label and j != i]
        if positives:
            total = total - log_probability[i, positives].mean()
    return total / len(labels)


def step(p, images, pixels, labels, *, train, local=contrast, scale=LOSS_SCALE):
    """Logits, each module's loss, and what the small networks of the last boundary read and give (all NCHW)."""
    x, losses, pieces = images, [], {}
    supplied = [] if IMAGE else [images]  # h^c, the most recent first
    for stage, block in BLOCKS:
        x = backbone_block(p, stage, block, x, train)
        if (stage, block) not in BOUNDARIES:
            continue
        k = BOUNDARIES.index((stage, block))
        ratio = k / max(len(BOUNDARIES) - 1, 1)
        of_decoder, of_head = ((1 - ratio) * scale[i] + ratio * scale[i + 2] for i in (0, 1))
        answer = local_head(p, f"aux_classifier_{stage}_{block}", x, train)
        reconstructed = decode(p, f"decoder_{stage}_{block}", x, images.shape[2:], train)
        of_pixels, of_answer = functional.binary_cross_entropy(reconstructed, pixels), local(answer, labels)
        losses.append(of_decoder * of_pixels + of_head * of_answer)
        x, size = x.detach(), x.shape[2:]
        pieces = {"features": x, "head": answer, "contrast": of_answer, "decoder": reconstructed}
        context = [encode_images(p, f"cont_sup_node.encoder_{k}", images, size, train)] if IMAGE else []
        for slot, source in enumerate(supplied[:RECENT]):
            context.append(encode_features(p, f"cont_sup_node.resencoder_{k}_{slot}", source, size, train))
            pieces[f"source{slot}"] = source
        pieces |= {f"context{i}": value for i, value in enumerate(context)}
        x = x + sum(context)
        supplied.insert(0, x.detach())
    logits = linear(p, "fc", x.mean((2, 3)))
    losses.append(functional.cross_entropy(logits, labels))
    return logits, losses, pieces


def main():
    random = np.random.default_rng(1)
    images, labels = random.integers(0, 256, (4, 8, 6, 3), np.uint8), np.array([0, 1, 0, 2])
    state = make_state()
    file = {"images": images, "labels": labels, "mean": MEAN, "std": STD, "loss_scale": LOSS_SCALE}
    file |= {f"state/{name}": value for name, value in state.items()}

    p = {name: torch.tensor(value, dtype=torch.float64) for name, value in state.items()}
    raw = torch.tensor(images, dtype=torch.float64).permute(0, 3, 1, 2)
    mean, std = (torch.tensor(x, dtype=torch.float64).reshape(1, 3, 1, 1) for x in (MEAN, STD))
    inputs = ((raw - mean) / std, raw / 255, torch.tensor(labels))
    with torch.no_grad():
        file["eval_logits"] = step(p, *inputs, train=False)[0]
    learnt = {name: x.requires_grad_() for name, x in p.items() if "running" not in name}
    logits, losses, pieces = step(p, *inputs, train=True)
    gradients = torch.autograd.grad(sum(losses), list(learnt.values()))
    file |= {"train_logits": logits, "module_losses": torch.stack(losses)}
    file["gradients"] = torch.cat([x.flatten() for x in gradients])
    file["statistics"] = torch.cat([x for name, x in p.items() if "running" in name])
    file |= {f"piece/{name}": x.permute(0, 2, 3, 1) if x.ndim == 4 else x for name, x in pieces.items()}
    arrays = {name: x.detach().numpy() if torch.is_tensor(x) else np.asarray(x) for name, x in file.items()}
    np.savez_compressed(Path(__file__).with_name("contsup_reference.npz"), **arrays)


if __name__ == "__main__":
    main()
