"""Trains one optimizer step and writes its gradients: python gradients.py OUT.pt OVERRIDE ... A script, so that Lightning
can start it again as the second rank.
"""

import sys
from pathlib import Path

import torch
from lightning.pytorch.callbacks import Callback

from llmlab.config.compose import compose
from llmlab.training import recipe, trainers
from llmlab.training.intervals import Intervals
from llmlab.training.task import Task


class Spy(Callback):
    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.gradients = {n: p.grad.clone() for n, p in module.model.named_parameters()}


def gradients(overrides, folder):
    Path(folder).mkdir(exist_ok=True)
    composed = compose(overrides)
    devices = trainers.find_devices(composed.cfg)
    cut = recipe.Cut.make(composed.cfg.train.batch_size, composed.cfg.train.micro_batch_size, devices.world)
    task = Task(composed, Path(folder), {})
    intervals = Intervals.from_config(composed.cfg.train, 1000, 128, 12, {})
    module, trainer, _ = trainers.make(task, recipe.Recipe.from_config(composed), cut, devices, 12, 1, None, intervals)
    spy = Spy()
    trainer.callbacks.append(spy)
    trainers.fit(module, trainer, None)
    return spy.gradients if trainer.is_global_zero else None


if __name__ == "__main__":
    out, *typed = sys.argv[1:]
    found = gradients(typed, Path(out).parent)
    if found is not None:
        torch.save(found, out)
