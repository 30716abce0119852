"""The PyTorch half of the parity test and of the training benchmark: the same networks, in a process of their own.

    PYTHON benchmarks/pytorch_peer.py networks OUT.npz NAME HEIGHT WIDTH CHANNELS CLASSES
    PYTHON benchmarks/pytorch_peer.py train DIRECTORY

PYTHON is any interpreter with PyTorch and NumPy; nothing of jtrans is imported. `networks` writes one network's state
dict and what it computes. `train` is the loop that a PyTorch user writes: one network after another, each one step of
training and one measurement of its adversarial directions; it reads `job.json` and, for each line on its standard
input, goes through all networks once and answers with the seconds that took.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

MLP_WIDTHS = {"mlp_shallow": (256,), "mlp_deep": (1024, 512, 256, 128), "fcnet": (1176, 400, 120, 84)}
VGG11 = (64, "pool", 128, "pool", 256, 256, "pool", 512, 512, "pool", 512, 512, "pool")


def mlp(sizes):
    layers = [nn.Flatten()]
    for a, b in zip(sizes[:-2], sizes[1:-1]):  # noqa: B905, RUF007 (Python 3.9 runs this file too)
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(*sizes[-2:]))


def conv_a(channels, classes):
    layers = []
    for a, b in ((channels, 128), (128, 128), (128, 256), (256, 256)):
        layers += [nn.Conv2d(a, b, 5, stride=2, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(256, classes))


def conv_b(channels, classes):
    layers = []
    sizes = (channels, 128, 128, 256, 256, 512, 512, 1024)
    for i in range(7):
        layers += [nn.Conv2d(sizes[i], sizes[i + 1], 3, padding=int(i < 6)), nn.BatchNorm2d(sizes[i + 1]), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if i in (1, 3, 5, 6) else []
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(1024, classes))


class Block(nn.Module):
    def __init__(self, convolutions, shortcut):
        super().__init__()
        for i, convolution in enumerate(convolutions, 1):
            setattr(self, f"conv{i}", convolution)
            setattr(self, f"bn{i}", nn.BatchNorm2d(convolution.out_channels))
        self.depth = len(convolutions)
        self.downsample = shortcut

    def forward(self, x):
        y = x
        for i in range(1, self.depth + 1):
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
            y = y.relu() if i < self.depth else y
        return (y + (x if self.downsample is None else self.downsample(x))).relu()


class ResNet(nn.Module):
    def __init__(self, blocks, bottleneck, channels, classes):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        size = 64
        for stage, count in enumerate(blocks):
            width, layers = 64 * 2**stage, []
            out = 4 * width if bottleneck else width
            for i in range(count):
                stride = 2 if stage and not i else 1
                kernels = ((1, 1), (3, stride), (1, 1)) if bottleneck else ((3, stride), (3, 1))
                sizes = [size, *[width] * (len(kernels) - 1), out]
                convolutions = [
                    nn.Conv2d(sizes[j], sizes[j + 1], k, stride=s, padding=k // 2, bias=False)
                    for j, (k, s) in enumerate(kernels)
                ]
                shortcut = None
                if stride > 1 or size != out:
                    shortcut = nn.Sequential(nn.Conv2d(size, out, 1, stride=stride, bias=False), nn.BatchNorm2d(out))
                layers.append(Block(convolutions, shortcut))
                size = out
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layers))
        self.fc = nn.Linear(size, classes)

    def forward(self, x):
        x = self.bn1(self.conv1(x)).relu()
        for stage in range(1, 5):
            x = getattr(self, f"layer{stage}")(x)
        return self.fc(x.mean((2, 3)))


def vgg11(height, channels, classes):
    layers, size = [], channels
    for item in VGG11:
        if item == "pool":
            layers.append(nn.MaxPool2d(2))
        else:
            layers += [nn.Conv2d(size, item, 3, padding=1), nn.ReLU()]
            size = item
    if height < 224:
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, classes))
    head = [nn.Linear(512 * 49, 4096), nn.ReLU(), nn.Dropout(), nn.Linear(4096, 4096), nn.ReLU(), nn.Dropout()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(7), nn.Flatten(), *head, nn.Linear(4096, classes))


def lenet(height, width, channels, classes):
    features = 16 * ((height - 4) // 2 - 4) // 2 * (((width - 4) // 2 - 4) // 2)
    return nn.Sequential(
        nn.Conv2d(channels, 6, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(features, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, classes),
    )  # fmt: skip


def alexnet(channels, classes):
    return nn.Sequential(
        nn.Conv2d(channels, 64, 11, stride=4, padding=5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(), nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(256, classes),
    )  # fmt: skip


def build(name, height, width, channels, classes):
    """The network that jtrans builds under this name."""
    if name in MLP_WIDTHS:
        return mlp((height * width * channels, *MLP_WIDTHS[name], classes))
    return {
        "conv_a": lambda: conv_a(channels, classes),
        "conv_b": lambda: conv_b(channels, classes),
        "resnet18": lambda: ResNet((2, 2, 2, 2), False, channels, classes),
        "resnet50": lambda: ResNet((3, 4, 6, 3), True, channels, classes),
        "vgg11": lambda: vgg11(height, channels, classes),
        "lenet": lambda: lenet(height, width, channels, classes),
        "alexnet": lambda: alexnet(channels, classes),
    }[name]()


def to_torch(images):
    """Images `[N, H, W, C]` in [0, 1] as PyTorch takes them."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(images, -1, 1)))


def input_gradient(network, images, labels):
    """Logits, and the gradient of the summed cross entropy with respect to the images, which are `[N, C, H, W]`."""
    images = images.clone().requires_grad_()
    logits = network(images)
    loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, images)
    return logits.detach(), gradient


def train_step(network, optimizer, images, labels):
    network.train()
    optimizer.zero_grad()
    nn.functional.cross_entropy(network(images), labels).backward()
    optimizer.step()


def arrays(prefix, network):
    return {f"{prefix}/{name}": value.detach().cpu().numpy().copy() for name, value in network.state_dict().items()}


def networks(out, name, *sizes):
    """One network with running statistics away from their start: its state dict, logits and input gradients in float32,
    and in float64 as well, with the state dict after one step of SGD."""
    torch.manual_seed(0)
    height, width, channels, classes = map(int, sizes)
    network = build(name, height, width, channels, classes)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias, std=0.1)
        elif isinstance(module, nn.Dropout):
            module.p = 0.0  # random on either side: not compared
    images = np.random.default_rng(0).integers(256, size=(4, height, width, channels)).astype(np.float32) / 255
    labels = np.arange(4) % classes
    content = {"images": images, "labels": labels, **arrays("before", network)}
    for precision, dtype in (("float32", torch.float32), ("float64", torch.float64)):
        x, y = to_torch(images).to(dtype), torch.from_numpy(labels)
        network = network.to(dtype).eval()
        logits, gradient = input_gradient(network, x, y)
        content[f"logits/{precision}"] = logits.numpy()
        content[f"gradient/{precision}"] = np.moveaxis(gradient.numpy(), 1, -1)
    train_step(network, torch.optim.SGD(network.parameters(), lr=0.1), x, y)
    np.savez(out, **content, **arrays("after", network))


def operations(network, images):
    """Floating-point operations of one image through the network, and of those the first layer's."""
    counts = []

    def count(module, _, output):
        counts.append(2 * module.weight[0].numel() * output.numel())

    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(count)
    mode = network.training
    network.eval()(images[:1])
    network.train(mode)
    for module in network.modules():
        module._forward_hooks.clear()
    return sum(counts), counts[0]


def looped(many, job):
    """The loop of most PyTorch code: `step(images, labels, x, y) -> unit directions [M, N, D]`."""
    optimizers = [torch.optim.Adam(network.parameters(), lr=job["learning_rate"]) for network in many]

    def step(images, labels, x, y):
        directions = []
        for network, optimizer in zip(many, optimizers):  # noqa: B905 (as above)
            train_step(network, optimizer, images, labels)
            network.eval()
            directions.append(input_gradient(network, x, y)[1].flatten(1))
        return nn.functional.normalize(torch.stack(directions), dim=-1)

    return step


def vmapped(many, job):
    """The same by torch.func, for networks without BatchNorm, whose running statistics vmap refuses to move."""
    params, _ = torch.func.stack_module_state(many)
    optimizer = torch.optim.Adam(params.values(), lr=job["learning_rate"])
    network = many[0]

    def loss(params, images, labels, reduction):
        logits = torch.func.functional_call(network, params, (images,))
        return nn.functional.cross_entropy(logits, labels, reduction=reduction)

    by_params = torch.vmap(torch.func.grad(loss), (0, None, None, None))
    by_images = torch.vmap(torch.func.grad(loss, argnums=1), (0, None, None, None))

    def step(images, labels, x, y):
        own = {name: value.detach() for name, value in params.items()}
        for name, gradient in by_params(own, images, labels, "mean").items():
            params[name].grad = gradient
        optimizer.step()
        own = {name: value.detach() for name, value in params.items()}
        return nn.functional.normalize(by_images(own, x, y, "sum").flatten(2), dim=-1)

    return step


def train(directory):
    """Answer each line on the standard input with the seconds of one step of every network."""
    directory = Path(directory)
    job = json.loads((directory / "job.json").read_text())
    torch.set_num_threads(job["threads"])
    device = torch.device(job["device"])
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    data = np.load(directory / "data.npz")
    images, x = (to_torch(data[name]).to(device) for name in ("train_images", "test_images"))
    labels, y = (torch.from_numpy(data[name]).to(device) for name in ("train_labels", "test_labels"))
    torch.manual_seed(0)
    many = [build(job["model"], *data["test_images"].shape[1:], job["classes"]) for _ in range(job["networks"])]
    np.savez(directory / "before.npz", **{k: v for i, n in enumerate(many) for k, v in arrays(i, n).items()})
    many = [network.to(device) for network in many]
    print(json.dumps(operations(many[0], x)), flush=True)
    step = {"loop": looped, "vmap": vmapped}[job["style"]](many, job)
    for number, _ in enumerate(sys.stdin):
        start = number * job["batch"] % (len(images) - job["batch"] + 1)
        batch = slice(start, start + job["batch"])
        # TF32 on a GPU, as JAX has it by default, but for the first step, whose angles are compared.
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = number > 0
        synchronize()
        started = time.perf_counter()
        unit = step(images[batch], labels[batch], x, y)
        cosine = torch.einsum("and,bnd->abn", unit, unit)
        angle = torch.rad2deg(torch.arccos(cosine.abs().clamp(max=1))).mean(-1)
        synchronize()
        print(time.perf_counter() - started, flush=True)
        if number == 0:
            np.save(directory / "angle.npy", angle.cpu().numpy())


if __name__ == "__main__":
    {"networks": networks, "train": train}[sys.argv[1]](*sys.argv[2:])
