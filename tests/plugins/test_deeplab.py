"""The networks: the paper's weight counts, sizes of predictions, and any timm backbone."""

import pytest
import torch

from mtlprune_bench import UsageError
from mtlprune_bench.host.registry import load_registry
from mtlprune_bench.pruning.components import discover, prunable
from mtlprune_bench.runs.config import Engine
from mtlprune_bench.runs.request import Request
from mtlprune_bench.runs.run import Run
from mtlprune_bench.runs.suite import prepare_all
from mtlprune_bench.store import Store

NYU = {"segmentation": 40, "normals": 3}
CITYSCAPES = {"segmentation": 19, "depth": 1}
TASKONOMY = {"segmentation": 17, "normals": 3, "depth": 1, "keypoints": 1, "edges": 1}


@pytest.fixture(scope="module")
def registry():
    return load_registry()


def build(registry, name, channels, **settings):
    from dataclasses import replace

    model = registry.get("models", name)
    return model.build(channels, replace(model.settings, **settings), model.argument)


def count(weights):
    return sum(weight.numel() for weight in weights)


@pytest.mark.parametrize(
    ("channels", "weights", "rest"),
    [(NYU, 67_581_120, 33_580), (CITYSCAPES, 67_486_912, 33_488), (TASKONOMY, 136_705_216, 58_076)],
    ids=["nyuv2", "cityscapes", "taskonomy"],
)
def test_deeplab_resnet34_has_the_papers_weights(registry, channels, weights, rest):
    with torch.device("meta"):
        network = build(registry, "deeplab-resnet34", channels)
    assert count(prunable(network).values()) == weights
    assert count(network.parameters()) == weights + rest


def test_deeplab_resnet34_starts_as_the_released_code_does(registry):
    torch.manual_seed(0)
    network = build(registry, "deeplab-resnet34", {"depth": 1})
    for name, weight in network.trunk.named_parameters():
        if weight.ndim == 4:
            assert float(weight.detach().std()) == pytest.approx(0.01, rel=0.05), name
    first = network.heads["depth"][0][0].weight.detach()
    assert float(first.abs().max()) <= (1 / (512 * 9)) ** 0.5


@pytest.mark.parametrize("name", ["deeplab-resnet34", "deeplab-small", "timm:resnet50"])
def test_no_residual_branch_is_closed_at_initialisation(registry, name):
    network = build(registry, name, {"depth": 1}, width=2)
    scales = [layer.weight for layer in network.trunk.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    assert len(scales) > 8
    assert all((scale == 1).all() for scale in scales)


def test_a_narrow_trunk_has_fewer_channels_and_only_a_resnet_can_be_narrow(registry):
    whole, narrow = (
        build(registry, "deeplab-small", {"depth": 1}, width=2, trunk_width=factor) for factor in (1.0, 0.5)
    )
    ratio = count(prunable(narrow.trunk).values()) / count(prunable(whole.trunk).values())
    assert 0.2 < ratio < 0.3
    with pytest.raises(UsageError, match="'regnety_002' is none"):
        build(registry, "timm:regnety_002", {"depth": 1}, trunk_width=0.5)


@pytest.mark.parametrize(
    ("image", "prediction"), [((321, 321), (41, 41)), ((224, 224), (29, 29)), ((480, 640), (61, 81))]
)
def test_deeplab_resnet34_predicts_on_the_papers_grid(registry, image, prediction):
    network = build(registry, "deeplab-resnet34", {"depth": 1}, width=2).eval()
    with torch.inference_mode():
        assert network(torch.zeros(1, 3, *image))["depth"].shape == (1, 1, *prediction)


@pytest.mark.parametrize("backbone", ["resnet18", "mobilenetv2_050", "convnext_atto"])
def test_any_timm_backbone_carries_the_heads(registry, backbone):
    network = build(registry, f"timm:{backbone}", NYU, width=8)
    outputs = network.eval()(torch.zeros(2, 3, 64, 64))
    assert {task: output.shape[1] for task, output in outputs.items()} == NYU
    assert outputs["normals"].shape[-2:] == (4, 4)
    components = discover(network, torch.zeros(1, 3, 64, 64))
    assert set(components.by_name()) == {"shared", "segmentation", "normals"}
    assert len(components.users) == len(prunable(network)), "every layer of the trunk is used"


@pytest.mark.parametrize(
    ("backbone", "message"),
    [("resnet1800", r"no backbone 'resnet1800'. Did you mean resnet18"), ("vgg11", "output stride")],
)
def test_a_backbone_that_cannot_be_made_says_why(registry, backbone, message):
    with pytest.raises(UsageError, match=message):
        build(registry, f"timm:{backbone}", NYU)


def test_a_head_is_the_sum_of_its_branches(registry):
    network = build(registry, "deeplab-small", NYU).eval()
    features = torch.randn(1, 512, 6, 6, generator=torch.Generator().manual_seed(0))
    head = network.heads["normals"]
    assert torch.equal(head(features), torch.stack([branch(features) for branch in head]).sum(0))
    assert [branch[0].dilation for branch in head] == [(1, 1), (2, 2), (4, 4), (6, 6)]


def test_the_sparsity_of_a_small_network_is_counted_against_all_layers_of_the_whole(tmp_path, registry):
    """A narrow ResNet has a projection where the whole one needs none, so their layers do not pair up."""
    asked = Request(method="dense-small", dataset="nyuv2", sparsity=0.9, seed=0)
    (experiment,) = prepare_all([asked], registry, lambda text: None)
    small, whole = experiment.build_model(torch.device("cpu")), experiment.outline("multitask")
    assert set(prunable(small)) - set(prunable(whole)), "a layer of its own"
    rows = Run(experiment, Store(tmp_path), registry, Engine())._sparsities(small, {})
    found = {row["component"]: row["value"] for row in rows}
    for name, start in (("whole", ""), ("shared", "trunk."), ("normals", "heads.normals.")):
        one, other = (
            sum(weight.numel() for key, weight in prunable(network).items() if key.startswith(start))
            for network in (small, whole)
        )
        assert found[name] == pytest.approx(1 - one / other, abs=1e-12)
    assert found["whole"] >= 0.9
