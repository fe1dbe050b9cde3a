"""A plugin for tests of the documents: the stand-in so small that each of their commands runs in no time."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from toy_plugin import Network, NetworkSettings

from mtlprune_bench import Model, hookimpl
from mtlprune_bench.plugins.datasets import scenes
from mtlprune_bench.plugins.datasets.scenes.cache import Plan

PLAN = Plan(height=24, width=32, train=6, validation=2, test=6)
SMALL = {"steps": 12, "batch": 2, "crop": 16, "update_every": 2, "eval_batch": 6, "lr_decay_every": 6}


@hookimpl
def register_datasets(register):
    registered = []
    scenes.register_datasets(registered.append)
    (full,) = registered
    register(
        replace(
            full,
            model="tiny-net",
            train=replace(full.train, **SMALL),
            finetune=replace(full.finetune, **SMALL),
            open=partial(scenes.open_scenes, plan=PLAN),
        )
    )


@hookimpl
def register_models(register):
    register(
        Model(
            name="tiny-net",
            description="two convolutions and a head a task",
            settings=NetworkSettings(),
            build=lambda channels, settings, argument: Network(channels, settings.width),
            scaled=lambda settings, factor: NetworkSettings(max(1, int(settings.width * factor))),
        )
    )
