"""Named tensors: what flows between the pure functions."""

from __future__ import annotations

from collections.abc import Mapping

import torch

NamedTensors = Mapping[str, torch.Tensor]
"""A model's tensors by parameter name, such as `{"trunk.conv1.weight": ...}`."""
