"""Masks alone, in a training loop of your own: score, prune, train on with any optimizer, take the masks out."""

import torch
from torch import nn
from torch.nn import functional as F

from mtlprune_bench import prune

torch.manual_seed(0)


class Net(nn.Module):
    """A trunk that two tasks share: the sign of a point's sum, and its distance from the origin."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.sign, self.size = nn.Linear(64, 2), nn.Linear(64, 1)

    def forward(self, points):
        features = self.trunk(points)
        return self.sign(features), self.size(features)


def draw(count=64):
    points = torch.randn(count, 16)
    return points, (points.sum(1) > 0).long(), points.norm(dim=1, keepdim=True)


def losses(batch):
    points, sign, size = batch
    guessed, measured = model(points)
    return {"sign": F.cross_entropy(guessed, sign), "size": F.mse_loss(measured, size)}


model = Net()
masks = prune(model, losses, [draw() for _ in range(50)], method="disparse-static", sparsity=0.9)
print(masks, {task: round(masks.sparsity(names), 3) for task, names in masks.components.items()})

masks.apply(model)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
for _ in range(200):
    optimizer.zero_grad()
    sum(losses(draw()).values()).backward()
    optimizer.step()
masks.remove(model)
kept = sum(int((dict(model.named_parameters())[name] != 0).sum()) for name in masks)
print(f"kept {kept} weights;", {task: round(loss.item(), 3) for task, loss in losses(draw(1000)).items()})
