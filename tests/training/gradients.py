"""The gradients of a run's first optimizer step, before clipping, by the paths of their parameters."""

from lightning.pytorch.callbacks import Callback

from llmlab.config.compose import compose
from llmlab.training import recipe, trainers
from llmlab.training.intervals import Intervals
from llmlab.training.strategies.portable import gathered
from llmlab.training.task import Task


class Spy(Callback):
    def on_before_optimizer_step(self, trainer, module, optimizer):
        learning = ((n, p) for n, p in module.trained.named_parameters() if p.requires_grad)
        self.gradients = {n: _whole(p).clone() for n, p in learning}


def _whole(parameter):
    """The gradient of all ranks, however it is sharded."""
    if hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping"):  # ZeRO 3's, or 1's and 2's
        from deepspeed.utils import safe_get_full_grad

        return safe_get_full_grad(parameter)
    return gathered(parameter.grad)


def gradients(overrides, folder):
    return of(compose(overrides), folder)


def of(composed, folder, made=None):
    """made: the recipe of the same config, where there is one already."""
    folder.mkdir(parents=True, exist_ok=True)
    devices = trainers.find_devices(composed.cfg)
    cut = recipe.Cut.make(composed.cfg.train.batch_size, composed.cfg.train.micro_batch_size, devices.world)
    made = made or recipe.Recipe.from_config(composed)
    intervals = Intervals.from_config(composed.cfg.train, 1000, 128, 12, {})
    module, trainer, _ = trainers.make(Task(composed, folder, {}), made, cut, devices, 12, 1, None, intervals)
    spy = Spy()
    trainer.callbacks.append(spy)
    trainers.fit(module, trainer, None)
    return spy.gradients
