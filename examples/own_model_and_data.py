"""Your own network on your own images: two methods and a dense network, two seeds, one table; seconds on a CPU."""

import torch
from torch import nn

from mtlprune_bench import Labels, Recipe, as_dataset, run


def scene(seed):
    """Return an image, and by task which pixels are of a red square, and their depth: 1 m, or 3 m behind it."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 80, (3, 32, 32), generator=generator, dtype=torch.uint8)
    top, left = torch.randint(0, 20, (2,), generator=generator).tolist()
    square = torch.zeros(32, 32, dtype=torch.bool)
    square[top : top + 12, left : left + 12] = True
    image[0, square] += 150
    return image, {"segmentation": square, "depth": torch.where(square, 1.0, 3.0)[None]}


class Net(nn.Module):
    """Any module that maps images to a dict of predictions by task."""

    def __init__(self, channels):
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 24, 3, 2, 1), nn.ReLU(), nn.Conv2d(24, 24, 3, 1, 1), nn.ReLU())
        self.heads = nn.ModuleDict({task: nn.Conv2d(24, count, 1) for task, count in channels.items()})

    def forward(self, images):
        features = self.trunk(images)
        return {task: head(features) for task, head in self.heads.items()}


train, test = [scene(seed) for seed in range(40)], [scene(seed) for seed in range(100, 110)]
labels = [Labels("segmentation", classes=2), Labels("depth", unit="m")]
squares = as_dataset("squares", train, test, labels, Recipe(steps=40, batch=8, crop=32, lr=1e-2, eval_batch=10))
results = run(["dense", "snip", "disparse-static"], squares, Net, sparsity=0.8, seeds=2)
print(results)
print("DiSparse keeps", {name: int(mask.sum()) for name, mask in results[-1].masks.items()})
