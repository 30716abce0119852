"""Networks of PyTorch as JAX functions, against PyTorch alone in float64. `make torch` has all that they need."""

import copy
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402 (only where it is there)

import jtrans.torch  # noqa: E402 (only where PyTorch is there)
from jtrans import directions, jacobian, metrics  # noqa: E402 (only where PyTorch is there)

IMAGE, VECTOR = (16, 16, 3), (24,)


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(2))
        self.norms = nn.ModuleList(nn.GroupNorm(4, width) for _ in range(2))

    def forward(self, x):
        y = self.norms[0](self.convolutions[0](x)).relu()
        return (x + self.norms[1](self.convolutions[1](y))).relu()


class Vit(nn.Module):
    """Its encoder has nn.MultiheadAttention, with a fast path in evaluation mode."""

    def __init__(self, outputs, width=16):
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, stride=4)
        layer = nn.TransformerEncoderLayer(width, 2, 32, dropout=0.1, activation="gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(width, outputs)

    def forward(self, x):
        return self.head(self.encoder(self.patches(x).flatten(2).transpose(1, 2)).mean(1))


def cnn(outputs):
    features = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(inplace=True), nn.BatchNorm2d(8), nn.MaxPool2d(2)
    return nn.Sequential(*features, nn.Flatten(), nn.Dropout(), nn.Linear(8 * 4 * 4, outputs))


def resnet(outputs):
    stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
    return nn.Sequential(stem, Residual(8), Residual(8), nn.Flatten(), nn.Linear(8 * 8 * 8, outputs))


def mlp(outputs):
    return nn.Sequential(nn.Linear(24, 32), nn.Tanh(), nn.Linear(32, outputs))


def convnext(outputs):
    pytest.importorskip("timm")
    from timm.models.convnext import ConvNeXt

    return ConvNeXt(num_classes=outputs, patch_size=1, depths=(1, 1, 1, 1), dims=(8, 8, 16, 16))


def swin(outputs):
    """With scaled_dot_product_attention, whose fused kernels have no forward derivative."""
    pytest.importorskip("timm")
    from timm.models.swin_transformer import SwinTransformer

    sizes = {"img_size": 16, "patch_size": 2, "window_size": 4, "embed_dim": 8, "depths": (2,), "num_heads": (2,)}
    return SwinTransformer(num_classes=outputs, **sizes)


NETWORKS = {"cnn": cnn, "resnet": resnet, "vit": Vit, "convnext": convnext, "swin": swin, "mlp": mlp}


def build(name, outputs=10, seed=0):
    torch.manual_seed(seed)
    model = NETWORKS[name](outputs).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model


def inputs(name, count=2):
    return np.random.default_rng(0).uniform(size=(count, *(VECTOR if name == "mlp" else IMAGE))).astype(np.float32)


def as_torch(x):
    x = torch.tensor(x, dtype=torch.float64)
    return x.movedim(-1, 1).contiguous() if x.ndim == 4 else x


def in_float64(model):
    """By PyTorch alone: from `[N, ...]` as the network takes it to logits."""
    model = copy.deepcopy(model).double()
    return lambda x: getattr(outputs := model(x), "logits", outputs)


def reference(model, x):
    """The logits and the Jacobians `[N, K, D]`, each row from a copy of its input."""
    evaluate = in_float64(model)
    logits = evaluate(as_torch(x)).detach()
    copies = as_torch(x).repeat_interleave(logits.shape[1], 0).requires_grad_()
    units = torch.eye(logits.shape[1], dtype=torch.float64).repeat(len(x), 1)
    (rows,) = torch.autograd.grad(evaluate(copies), copies, units)
    rows = rows.movedim(1, -1) if rows.ndim == 4 else rows
    return logits.numpy(), rows.reshape(*logits.shape, -1).numpy()


def relative(ours, theirs):
    """The largest error of an example, relative to its length."""
    ours, theirs = (np.asarray(a, np.float64).reshape(len(a), -1) for a in (ours, theirs))
    return (np.linalg.norm(ours - theirs, axis=1) / np.linalg.norm(theirs, axis=1)).max()


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


@pytest.mark.parametrize("outputs", [10, 1000])
@pytest.mark.parametrize("name", NETWORKS)
def test_logits_derivatives_and_transferability_are_those_of_pytorch_in_float64(name, outputs):
    source, target = build(name, outputs), build(name, outputs, seed=1)
    x, labels = inputs(name), np.arange(2)
    (logits, rows), (_, target_rows) = reference(source, x), reference(target, x)
    f, g = (jtrans.torch.function(model, mean=(0,), std=(1,)) for model in (source, target))

    assert relative(f(x), logits) < 1e-4
    cotangent = np.exp(logits) / np.exp(logits).sum(1, keepdims=True) - np.eye(outputs)[labels]
    gradient = np.einsum("nk,nkd->nd", cotangent, rows)
    direction = np.asarray(directions.loss_gradient(f, jnp.asarray(x), labels), np.float64).reshape(len(x), -1)
    assert relative(unit(direction), unit(gradient)) < 1e-4
    v = np.random.default_rng(1).normal(size=x.shape).astype(np.float32)
    pushed = np.einsum("nkd,nd->nk", rows, v.reshape(len(x), -1))
    for transform in (lambda f: f, jax.jit):
        assert relative(jax.jvp(transform(f), (jnp.asarray(x),), (jnp.asarray(v),))[1], pushed) < 1e-4

    _, s, vt = np.linalg.svd(rows, full_matrices=False)
    triple = jacobian.top_singular_triple(f, jnp.asarray(x))
    assert relative(triple.s, s[:, 0]) < 1e-4
    top = np.asarray(triple.v, np.float64).reshape(len(x), -1)
    sign = np.sign((top * vt[:, 0]).sum(1, keepdims=True))
    assert relative(sign * top, vt[:, 0]) < 1e-4

    own, across = (np.einsum("nkd,nd->nk", jacobians, vt[:, 0]) for jacobians in (rows, target_rows))
    tau1 = np.linalg.norm(across, axis=1) / np.linalg.norm(target_rows, ord=2, axis=(1, 2))
    aligned = np.einsum("nk,nl->nkl", unit(own), unit(across))
    scores = metrics.transferability(f, g, jnp.asarray(x))
    assert scores.tau1_per_example == pytest.approx(tau1, rel=1e-4)
    assert float(scores.tau2) == pytest.approx(np.linalg.norm(aligned.mean(0)), rel=1e-4)
    assert float(scores.tau1_tau2) == pytest.approx(np.linalg.norm((tau1[:, None, None] * aligned).mean(0)), rel=1e-4)


def test_float64_goes_through():
    model, x = build("cnn").double(), inputs("cnn")
    logits, rows = reference(model, x)
    with jax.enable_x64(True):
        f, x = jtrans.torch.function(model), jnp.asarray(x, jnp.float64)
        assert relative(f(x), logits) < 1e-12
        assert relative(jacobian.jacobian(jax.jit(f), x), rows) < 1e-12
    assert f(jnp.asarray(x, jnp.float32)).dtype == jnp.float32


def test_the_network_itself_stays_as_it_is_and_is_called_as_it_is():
    model, x = build("vit"), jnp.asarray(inputs("vit"))
    model.head.weight.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    f, fast_path = jtrans.torch.function(model), torch.backends.mha.get_fastpath_enabled()
    jacobian.top_singular_triple(f, x)
    jax.jvp(f, (x,), (x,))
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["head.weight"]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.backends.mha.get_fastpath_enabled() == fast_path
    assert torch.is_grad_enabled()
    logits, _ = jax.vjp(f, x)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    assert relative(f(x), reference(model, x)[0]) < 1e-4
    assert relative(jacobian.jacobian(f, x), reference(model, x)[1]) < 1e-4
    for parameter in model.parameters():
        parameter.data.mul_(2)  # which PyTorch does not notice
    assert relative(jacobian.jacobian(f, x), reference(model, x)[1]) < 1e-4
    assert relative(f(x), logits) < 1e-6


def test_pixels_are_normalised_as_they_say_who_made_the_network():
    timm, torchvision = pytest.importorskip("timm"), pytest.importorskip("torchvision")
    published = torchvision.models.ResNet18_Weights.DEFAULT.transforms()
    of_timm = timm.create_model("resnet18", num_classes=5).eval()
    of_timm.pretrained_cfg |= {"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.6, 0.7)}
    torch_classes = {count: torchvision.models.resnet18(num_classes=count).eval() for count in (1000, 5)}
    own = {"mean": (0.3, 0.3, 0.4), "std": (0.2, 0.3, 0.3)}
    nothing = (0, 0, 0), (1, 1, 1)
    for model, given, (mean, std) in (
        (of_timm, {}, ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))),
        (of_timm, own, tuple(own.values())),
        (torch_classes[1000], {}, (published.mean, published.std)),
        (torch_classes[1000], own, tuple(own.values())),
        (torch_classes[5], {}, nothing),
        (torchvision.models.efficientnet_b0().eval(), {}, (published.mean, published.std)),  # beside other enumerations
        (build("cnn"), {}, nothing),
        (build("cnn"), {"mean": (0.5,), "std": (0.25,)}, ((0.5,) * 3, (0.25,) * 3)),
    ):
        x = inputs("cnn")
        normalised = (x - np.float64(mean)) / np.float64(std)
        logits = in_float64(model)(as_torch(normalised)).detach()
        assert relative(jtrans.torch.function(model, **given)(x), logits) < 1e-4


def test_outputs_of_hugging_face_are_taken_as_they_come():
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.ViTConfig(image_size=16, patch_size=4, num_labels=7, **sizes)
    model, x = transformers.ViTForImageClassification(config).eval(), jnp.asarray(inputs("vit"))
    f = jtrans.torch.function(model)
    logits, rows = reference(model, x)
    assert relative(f(x), logits) < 1e-4
    assert relative(jacobian.jacobian(f, x), rows) < 1e-4
    assert relative(jax.jvp(f, (x,), (x,))[1], np.einsum("nkd,nd->nk", rows, x.reshape(2, -1))) < 1e-4


class Returns(nn.Module):
    def __init__(self, result):
        super().__init__()
        self.result = result

    def forward(self, x):
        return self.result


@pytest.mark.parametrize(
    ("arguments", "shape", "message"),
    [
        ({"model": lambda x: x}, IMAGE, "model: got function; it takes a torch.nn.Module"),
        ({"model": build("cnn").train()}, IMAGE, r"model: Sequential is in training mode; call model.eval\(\) first"),
        ({"model": build("cnn"), "mean": (0.5,)}, IMAGE, r"mean, std: got \(0.5,\) and None; it takes both or neither"),
        (
            {"model": build("cnn"), "mean": (0, 0), "std": (1, 1)},
            IMAGE,
            r"mean: got 2 values; x of shape .* 3 channels",
        ),
        ({"model": build("cnn")}, (3, 16, 16), r"x: got images of shape \(3, 16, 16\); the network takes 3 channels"),
        ({"model": build("mlp")}, (7,), r"x: the network cannot take inputs of shape \(7,\) \(RuntimeError"),
        ({"model": Returns("text")}, IMAGE, r"model: returned str; it takes networks that return logits \[N, K\]"),
        ({"model": Returns(torch.zeros(10))}, IMAGE, r"model: returned shape \(10,\)"),
    ],
)
def test_bad_input_is_one_line(arguments, shape, message):
    if isinstance(arguments["model"], Returns):
        arguments["model"].eval()
    with pytest.raises(ValueError, match=message) as raised:
        directions.loss_gradient(jtrans.torch.function(**arguments), jnp.ones((2, *shape)), np.zeros(2, int))
    assert re.fullmatch(f"{message}.*", str(raised.value))


def test_a_network_that_is_put_in_training_mode_later_is_refused():
    model, x = build("cnn"), jnp.asarray(inputs("cnn"))
    f = jtrans.torch.function(model)
    compiled = jax.jit(f)
    compiled(x)
    model[2].train()
    with pytest.raises(ValueError, match="model: its 2 is in training mode"):
        metrics.transferability(f, f, x)
    with pytest.raises((jax.errors.JaxRuntimeError, ValueError), match="model: its 2 is in training mode"):
        compiled(x).block_until_ready()


def test_a_network_that_raises_is_one_line():
    class Fails(nn.Module):
        def forward(self, x):
            if len(x) > 1:
                raise RuntimeError("not\ntoday")
            return x.flatten(1)

    f = jtrans.torch.function(Fails().eval())
    for measure in (directions.loss_gradient, lambda f, x, y: jacobian.top_singular_triple(f, x)):
        with pytest.raises(ValueError) as raised:  # noqa: PT011 (matched below, without the notes that JAX adds)
            measure(f, jnp.ones((2, 3)), np.zeros(2, int))
        assert str(raised.value) == "forward: raised RuntimeError: not today"


def test_the_guide_runs():
    for needed in ("timm", "torchvision", "transformers"):
        pytest.importorskip(needed)
    names = {}
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "pytorch.md").read_text(), re.DOTALL)
    assert len(blocks) >= 3
    for block in blocks:
        exec(block, names)


def test_the_readmes_lines_run(capsys):
    (block,) = re.findall(r"```python\n(import jtrans\.torch.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    own, other = (nn.Sequential(nn.Flatten(), nn.Linear(192, 10)).eval() for _ in range(2))
    x = jax.random.uniform(jax.random.key(0), (4, 8, 8, 3))
    exec(block, {"my_network": own, "my_other_network": other, "x": x, "y": jnp.zeros(4, int)})
    angles, tau1 = capsys.readouterr().out.rsplit("\n", 2)[:2]
    assert len(angles.strip("[]").split()) == 4
    assert 0 < float(tau1) < 1
