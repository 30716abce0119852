"""The PyTorch half of the parity test of the networks of texts, in a process of its own.

    PYTHON benchmarks/pytorch_text_peer.py OUT.npz NAME EMBEDDING CLASSES WIDTH...

PYTHON is any interpreter with PyTorch and NumPy; nothing of jtrans is imported. It writes texts, the network's state
dict, its logits and input gradients in float32 and float64, and the state dict after one step of SGD. Each text goes
through the network by itself, without padding, so that no mask is needed here.
"""

import sys

import numpy as np
import torch
from torch import nn

LENGTHS = (7, 1, 4, 2, 5)


class Mean(nn.Module):
    def __init__(self, size, classes, *widths):
        super().__init__()
        self.mlp = mlp(size, *widths, classes)

    def forward(self, x):
        return self.mlp(x.mean(1))


class CNN(nn.Module):
    def __init__(self, size, classes, *widths):
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Conv1d(size, width, kernel, padding=kernel - 1)
            for width, kernel in zip(widths, (3, 4, 5))  # noqa: B905
        )
        self.mlp = mlp(sum(widths[:3]), *widths[3:], classes)

    def forward(self, x):
        x = x.transpose(1, 2)
        return self.mlp(torch.cat([convolution(x).relu().amax(2) for convolution in self.convolutions], 1))


class LSTM(nn.Module):
    def __init__(self, size, classes, width, *widths):
        super().__init__()
        self.lstm = nn.LSTM(size, width, batch_first=True)
        self.mlp = mlp(width, *widths, classes)

    def forward(self, x):
        return self.mlp(self.lstm(x)[0][:, -1])


class Transformer(nn.Module):
    def __init__(self, size, classes, width, *hidden):
        super().__init__()
        self.projection = nn.Linear(size, width)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, h, dropout=0.0, batch_first=True, norm_first=True) for h in hidden
        )
        self.norm = nn.LayerNorm(width)
        self.mlp = mlp(width, classes)

    def forward(self, x):
        x = self.projection(x)
        position, frequency = torch.arange(x.shape[1]), torch.arange(0, x.shape[2], 2)
        angle = position[:, None] * torch.exp(-np.log(10_000.0) * frequency / x.shape[2])
        encoding = torch.zeros_like(x)
        encoding[:, :, 0::2], encoding[:, :, 1::2] = angle.sin(), angle.cos()
        x = x + encoding
        for layer in self.layers:
            x = layer(x)
        return self.mlp(self.norm(x).mean(1))


def mlp(*sizes):
    layers = []
    for a, b in zip(sizes[:-2], sizes[1:-1]):  # noqa: B905, RUF007 (Python 3.9 runs this file too)
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(*sizes[-2:]))


NETWORKS = {"text_mean": Mean, "text_cnn": CNN, "text_lstm": LSTM, "text_transformer": Transformer}


def arrays(prefix, network):
    return {f"{prefix}/{name}": value.detach().numpy().copy() for name, value in network.state_dict().items()}


def main(out, name, *sizes):
    torch.manual_seed(0)
    size, classes, *widths = map(int, sizes)
    network = NETWORKS[name](size, classes, *widths)
    start = arrays("start", network)
    for module in network.modules():
        if isinstance(module, (nn.LayerNorm, nn.MultiheadAttention)):  # away from ones and zeros
            for parameter in module.parameters(recurse=False):
                nn.init.normal_(parameter, mean=1.0 if parameter is getattr(module, "weight", None) else 0.0, std=0.3)
    x = np.random.default_rng(0).normal(size=(len(LENGTHS), max(LENGTHS), size)).astype(np.float32)
    labels = torch.arange(len(LENGTHS)) % classes
    content = {"x": x, "lengths": LENGTHS, "labels": labels.numpy(), **start, **arrays("before", network)}
    for precision, dtype in (("float32", torch.float32), ("float64", torch.float64)):
        network = network.to(dtype)  # in training mode, whose layers compute as written; there is no dropout
        inputs = torch.from_numpy(x).to(dtype).requires_grad_()
        logits = torch.cat([network(text[None, :length]) for text, length in zip(inputs, LENGTHS)])  # noqa: B905
        loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, inputs, retain_graph=True)
        content[f"logits/{precision}"], content[f"gradient/{precision}"] = logits.detach().numpy(), gradient.numpy()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    (loss / len(LENGTHS)).backward()
    optimizer.step()
    np.savez(out, **content, **arrays("after", network))


if __name__ == "__main__":
    main(*sys.argv[1:])
