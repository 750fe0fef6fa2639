"""ZeRO (Rajbhandari et al. 2019, arXiv:1910.02054) through Lightning's DeepSpeedStrategy, on GPUs and, with gloo, on CPUs.

DeepSpeed keeps the weights that are trained (float32) and the optimizer's state as flat pieces, one a rank. Checkpoints do
not: they hold whole tensors by parameter path, as those of every other strategy, so DeepSpeed's own files, which are
pickles of one strategy and one number of ranks, are neither written nor read.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from lightning.pytorch.strategies import DeepSpeedStrategy, Strategy
from torch import Tensor, nn
from torch.optim import Optimizer

from llmlab.config.spec import ModelSpec
from llmlab.errors import UserError
from llmlab.model import roles
from llmlab.model.model import Model, Shared
from llmlab.training.strategies import elementwise
from llmlab.training.strategies.portable import ByPath, SafeCheckpointIO
from llmlab.training.strategies.zero_buckets import BUCKET, KEPT_WHOLE

if TYPE_CHECKING:
    import lightning.pytorch as pl
    from deepspeed.ops.adam import DeepSpeedCPUAdam
    from omegaconf import DictConfig

    from llmlab.modules import Role
    from llmlab.slots import OptimizerPart
    from llmlab.training.devices import Devices


def check(cfg: DictConfig, devices: Devices, spec: ModelSpec) -> None:
    """UserError in a line for what ZeRO can't do here."""
    name = cfg.strategy.name
    # Not imported yet: it takes 0.3 s beside torch, and a config may be refused for other reasons.
    if importlib.util.find_spec("deepspeed") is None:
        raise UserError(f"strategy={name} needs DeepSpeed: pip install 'llmlab[deepspeed]'")
    elementwise.check(cfg)


def make(cfg: DictConfig, devices: Devices) -> Zero:
    name = cfg.strategy.name
    return Zero(
        int(name[4]),
        gpu=devices.accelerator == "gpu",
        offload=name.endswith("offload"),
        clip=cfg.train.clip,
        # Lightning 2.6 tells DeepSpeed the same for bf16-mixed and bf16-true (`_format_precision_config`).
        bf16=cfg.precision.startswith("bf16"),
    )


class Zero(ByPath, DeepSpeedStrategy):
    """Optimizer state (stage 1), gradients too (2), parameters too (3) are sharded over the data-parallel ranks.

    offload: optimizer state, and in stage 3 parameters, lie in the CPU's memory, where the step is computed. clip:
    gradient norm. bf16: weights and gradients are bfloat16, trained in float32.
    """

    # DeepSpeedStrategy says True: Lightning would then call `optimizer_step` at every micro-batch and leave the count
    # to DeepSpeed.
    handles_gradient_accumulation = False

    def __init__(self, stage: int, *, gpu: bool, offload: bool, clip: float | None, bf16: bool):
        # DeepSpeed chooses once, as it is imported (below, in super), and takes a GPU that is there whatever the
        # Trainer's accelerator is; setdefault leaves the user's own choice.
        if not gpu:
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
        self.stage, self.gpu, self.offload, self.bf16 = stage, gpu, offload, bf16
        self._groups: list[list[str]] = []  # paths of the parameters of each group of the optimizer
        self._ready = False  # whether DeepSpeed has the parameters
        self._unrounded: dict[nn.Parameter, Tensor] = {}  # with bf16, on the first rank: frozen ones as they are saved
        super().__init__(
            stage=stage,
            offload_optimizer=offload,
            offload_parameters=offload and stage == 3,
            # It reduces on a stream of its own, of which a CPU has none.
            overlap_comm=gpu,
            reduce_bucket_size=BUCKET,  # DeepSpeed's own 500 million elements would be a buffer of 2 GB
            allgather_bucket_size=BUCKET,
            # For "auto" Lightning asks the loader for its batch_sampler, which is None where an item is a whole
            # micro-batch; DeepSpeed only logs a throughput by it.
            logging_batch_size_per_gpu=1,
            logging_level=logging.ERROR,
            process_group_backend="nccl" if gpu else "gloo",
        )
        assert isinstance(self.config, dict)
        # Else Lightning writes the Trainer's gradient_clip_val here, which is None: clipping is the module's.
        self.config["gradient_clipping"] = clip or 0.0
        if stage == 3:
            self.config["zero_optimization"]["stage3_param_persistence_threshold"] = KEPT_WHOLE if gpu else 0
        # By default gradients are added up in the model's type, where one of many micro-batches is rounded away.
        if bf16:
            self.config["data_types"] = {"grad_accum_dtype": "fp32"}
        # DeepSpeedStrategy's constructor takes none, as it writes its own files (Lightning 2.6).
        self._checkpoint_io = SafeCheckpointIO()

    whole = property(lambda self: self.stage < 3)  # type: ignore[assignment]

    # ---------------------------------------------------------------- where Lightning knows GPUs only

    def setup_environment(self) -> None:
        if self.gpu:
            super().setup_environment()
        else:
            # DeepSpeedStrategy's own raises for all but CUDA (Lightning 2.6), then calls this one of its parent.
            super(DeepSpeedStrategy, self).setup_environment()

    def setup_distributed(self) -> None:
        if self.gpu:
            super().setup_distributed()
        else:
            # The same without `_validate_device_index_selection`, which takes the devices for GPUs with an index.
            self.set_world_ranks()
            self._init_deepspeed_distributed()

    @property
    def root_device(self) -> torch.device:
        # With an index: Lightning hands `root_device.index` on to `deepspeed.initialize`.
        return super().root_device if self.gpu else torch.device("cpu", 0)

    def _init_deepspeed_distributed(self) -> None:
        import deepspeed

        # On CPUs `build_shm_op` compiles an all-reduce over shared memory where it finds a compiler: half a minute at
        # the first start.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        super()._init_deepspeed_distributed()

    # ---------------------------------------------------------------- the model

    @contextlib.contextmanager
    def model_sharded_context(self) -> Iterator[None]:
        """Nothing: `assemble` shards, while what is drawn for a parameter must be whole."""
        # `assemble` runs within this and hands the config to zero.Init, which looks in it for the precision.
        self._init_config_if_needed()
        yield

    def assemble(self, spec: ModelSpec, shared: Shared | None = None) -> Model:
        if self.stage < 3:
            return super().assemble(spec, shared)
        import deepspeed

        # Each parameter is sharded as soon as its module's __init__ returns, so that no rank ever holds a whole model.
        with deepspeed.zero.Init(config_dict_or_path=self.config):
            model = Model(spec, shared)
        # Within Init torch.empty, zeros and the like give floats of the parameters' type
        # (`zero_wrapper_for_fp_tensor_constructor`), but tables of positions and counts of routers are float32.
        for module in model.modules():
            for name, buffer in module._buffers.items():
                if buffer is not None and buffer.is_floating_point():
                    module._buffers[name] = buffer.float()
        return model

    def distribute(self, model: Model) -> None:
        if self.stage < 3:
            super().distribute(model)
        for parameter in model.parameters():
            # ZeRO 3 leaves parameters empty, of shape (0,), between forwards; `ds_shape` is what they would have.
            parameter.whole_shape = getattr(parameter, "ds_shape", parameter.shape)  # type: ignore[attr-defined]
            parameter.put_whole = functools.partial(self._put, parameter)  # type: ignore[attr-defined]

    def build_optimizer(self, part: OptimizerPart, parameters: Sequence[tuple[str, nn.Parameter, Role]]) -> Optimizer:
        """The part sees tensors of the true shapes, which take no memory; its groups are then given the parameters."""
        shown = [
            (path, nn.Parameter(torch.zeros((), device=p.device).expand(p.whole_shape)), role)  # type: ignore[attr-defined]
            for path, p, role in parameters
        ]
        real = {id(stand_in): (path, p) for (path, p, _), (_, stand_in, _) in zip(parameters, shown, strict=True)}
        made = part.build(shown)
        for group in made.param_groups:
            pairs = [real[id(stand_in)] for stand_in in group["params"]]
            self._groups.append([path for path, _ in pairs])
            group["params"] = [p for _, p in pairs]
        # DeepSpeed refuses torch's optimizers with offload (ZeRORuntimeException, `zero_force_ds_cpu_optimizer`).
        return _on_cpu(made) if self.offload else made

    def setup(self, trainer: pl.Trainer) -> None:
        module = self.lightning_module
        assert module is not None
        # Under bf16-true Lightning's DeepSpeedPrecision casts the module by `.to`, which rounds buffers too.
        buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
        super().setup(trainer)
        for name, buffer in module.named_buffers():
            buffer.data = buffers[name].to(buffer.device)
        self._ready = True
        # DeepSpeed makes its float32 weights of those that it was given, which were rounded to bfloat16 before: they
        # are filled anew.
        if self.bf16:
            module.fill()  # type: ignore[operator]

    def teardown(self) -> None:
        super().teardown()
        if torch.distributed.is_initialized():
            import deepspeed

            # Not torch's: this one also drops the references that DeepSpeed keeps of groups, which another run in this
            # process would meet (`_release_process_group_references`).
            deepspeed.comm.destroy_process_group()

    # ---------------------------------------------------------------- a step

    @contextlib.contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Nothing: the engine is told where an optimizer step ends, below."""
        yield

    def backward(self, closure_loss: Tensor, optimizer: Optimizer | None, *args: Any, **kwargs: Any) -> Tensor:
        assert self.lightning_module is not None
        more_follow = self.lightning_module.trainer.fit_loop._should_accumulate()
        # Else the engine goes by a counter of its own (`micro_steps`), which is 0 again in each process.
        self.deepspeed_engine.set_gradient_accumulation_boundary(not more_follow)
        # Lightning has divided by the micro-batches of a step; DeepSpeed would do it a second time.
        return super().backward(closure_loss, optimizer, *args, scale_wrt_gas=False, **kwargs)

    def clip(self, optimizer: Optimizer, limit: float | None) -> Tensor | None:
        return None  # in DeepSpeed's step

    def norm(self) -> Tensor:
        # Of the step that was just done, before clipping, over all ranks; DeepSpeed has it at hand.
        return torch.as_tensor(self.deepspeed_engine.get_global_grad_norm(), dtype=torch.float32)

    # ---------------------------------------------------------------- checkpoints

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: object = None) -> None:
        # Not DeepSpeed's own: a folder with a pickle of each rank, which only as many ranks of the same stage read.
        Strategy.save_checkpoint(self, checkpoint, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        # Not DeepSpeed's own, which loads a folder of its pickles into the engine; what is read here is handed to the
        # two methods below.
        return self.checkpoint_io.load_checkpoint(Path(checkpoint_path))

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The weights in float32. On the first rank only, which writes them."""
        weights = {}
        # keep_vars: DeepSpeed finds a weight's float32 copy by the Parameter itself (`_hp_mapping`, `ds_id`), which
        # `state_dict` detaches by default.
        for name, tensor in self._trained().state_dict(keep_vars=True).items():
            value = self._whole(tensor) if isinstance(tensor, nn.Parameter) else tensor.detach()
            if self.is_global_zero:
                weights[name] = value.cpu()
        return weights

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        base, first = self._base, self._flat[0]
        self._link()
        # Moments have the shape of the flat weights and are cut like them; a step counter is an int in DeepSpeedCPUAdam
        # and a tensor of no dimension in torch's AdamW.
        names = [k for k, v in base.state[first].items() if isinstance(v, Tensor) and v.shape == first.shape]
        rest = {k: torch.as_tensor(v, dtype=torch.float32) for k, v in base.state[first].items() if k not in names}
        state: dict[str, Any] = {}
        for path, parameter, _ in roles.learning(self._trained()):
            values = {name: self._whole(parameter, name) for name in names}
            if self.is_global_zero:
                values_here = {k: v.clone() for k, v in rest.items()}  # a step shared by all would count for each
                state[path] = values_here | {name: value.cpu() for name, value in values.items()}
        groups = zip(base.param_groups, self._groups, strict=True)
        return {"state": state, "param_groups": [{**g, "params": list(paths)} for g, paths in groups]}

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        base, (saved,) = self._base, checkpoint["optimizer_states"]
        # Group by group: lr, betas and step may differ, and a run with other ranks or another stage has the same paths.
        group_of = {path: group for group in saved["param_groups"] for path in group["params"]}
        for group, paths in zip(base.param_groups, self._groups, strict=True):
            group |= {
                k: v for k, v in group_of[paths[0]].items() if k in group and k not in ("params", "fused", "foreach")
            }
        shapes = {path: tuple(p.whole_shape) for path, p, _ in roles.learning(self._trained())}  # type: ignore[attr-defined]
        path, example = next(iter(saved["state"].items()))
        names = [k for k, v in example.items() if tuple(getattr(v, "shape", ())) == shapes[path] and k != "step"]
        for flat in self._flat:
            # DeepSpeedCPUAdam counts its steps in an int, which it hands to C++; torch's AdamW in a tensor.
            rest = {k: (int(v) if self.offload else v.clone()) for k, v in example.items() if k not in names}
            base.state[flat] = {**rest, **{name: torch.zeros_like(flat) for name in names}}
        self._link()
        for path, parameter, _ in roles.learning(self._trained()):
            for name in names:
                self._set(parameter, saved["state"][path][name], name)
        if self.offload:
            _replay(cast("DeepSpeedCPUAdam", base), int(example["step"]))

    @property
    def _base(self) -> Optimizer:
        """The optimizer that the part has built."""
        return self.deepspeed_engine.basic_optimizer

    @property
    def _flat(self) -> list[Tensor]:
        """This rank's piece of the trained weights of each group."""
        # The attribute's name in stage 3, in stages 1 and 2, and in BF16_Optimizer, which DeepSpeed 0.19 takes in stage
        # 1 for bfloat16 with float32 gradients (`_do_optimizer_sanity_check`).
        optimizer = self.deepspeed_engine.optimizer
        for name in ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups", "fp32_groups_flat_partition"):
            if hasattr(optimizer, name):
                return list(getattr(optimizer, name))
        raise AssertionError(type(optimizer))

    def _link(self) -> None:
        """Show parameters their piece of the optimizer's state; DeepSpeed itself forgets all groups but the first."""
        if self.stage < 3:
            # DeepSpeed 0.19 does this once, within the step of the first group, while it hides the others.
            from deepspeed.utils import lazy_init_hp_params_optimizer_state

            at_path = {path: p for path, p, _ in roles.parameters(self._trained())}
            for paths, flat in zip(self._groups, self._flat, strict=True):
                lazy_init_hp_params_optimizer_state([at_path[path] for path in paths], flat, self._base.state)

    def _whole(self, parameter: nn.Parameter, name: str | None = None) -> Tensor:
        """A trained weight, or its optimizer state of that name, whole; all ranks must ask for it."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        if not parameter.requires_grad:
            return self._frozen(parameter)
        if name is None:
            return safe_get_full_fp32_param(parameter)
        return safe_get_full_optimizer_state(parameter, name)

    def _frozen(self, parameter: nn.Parameter) -> Tensor:
        """A frozen weight, whole. DeepSpeed's optimizers know nothing of it, so its own functions give None or fail."""
        if self.bf16:  # no rank gathers
            return self._unrounded.get(parameter, parameter.detach())
        if self.stage < 3:
            return parameter.detach().float()
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter]):
            # Cloned: what was gathered is freed where the context ends, and `.float()` of float32 is the same memory.
            return parameter.detach().float().clone()

    def _set(self, parameter: nn.Parameter, value: Tensor, name: str | None = None) -> None:
        """The reverse of `_whole`."""
        from deepspeed import utils

        if self.stage == 3:  # its own function for whole tensors fails where a shard is padded
            size = utils.safe_get_local_fp32_param(parameter).numel()
            mine = torch.zeros(size * self.world_size)
            mine[: value.numel()] = value.flatten()
            mine = mine[size * self.global_rank :][:size]
            if name is None:
                utils.safe_set_local_fp32_param(parameter, mine)
            else:
                utils.safe_set_local_optimizer_state(parameter, mine, name)
        elif name is None:
            utils.safe_set_full_fp32_param(parameter, value)
        else:
            utils.safe_set_full_optimizer_state(parameter, value, name)

    @torch.no_grad()
    def _put(self, parameter: nn.Parameter, value: Tensor) -> None:
        """A whole value into a parameter, and into what is trained for it."""
        if self.stage == 3:
            import deepspeed

            # modifier_rank: what that rank has written is broadcast and sharded anew when this is left.
            with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
                parameter.copy_(value)
        else:
            parameter.copy_(value)
        if not parameter.requires_grad:
            # DeepSpeed makes all of a module bfloat16; only what learns has float32 weights beside, which are saved.
            if self.bf16 and self.is_global_zero and not hasattr(parameter, "elsewhere"):
                self._unrounded[parameter] = value
        elif self._ready:
            self._set(parameter, value)


def _replay(adam: DeepSpeedCPUAdam, steps: int) -> None:
    """Let DeepSpeed's Adam do `steps` steps of nothing: it multiplies the powers of its betas up from step to step, and what
    it computes where it has missed some differs in the last bit."""
    nothing, group = [torch.zeros(1) for _ in range(4)], adam.param_groups[0]
    for step in range(1, steps + 1):
        adam.ds_opt_adam.adam_update(adam.opt_id, step, 0.0, *group["betas"], group["eps"], 0.0, True, *nothing)


def _on_cpu(adamw: Optimizer) -> Optimizer:
    """DeepSpeed's AdamW for weights in the CPU's memory, which is compiled when it is first used."""
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    options = ("params", "lr", "betas", "eps", "weight_decay")
    groups = [{k: group[k] for k in options} for group in adamw.param_groups]
    # `jit_load` prints the seconds that compiling took.
    with contextlib.redirect_stdout(io.StringIO()):
        return DeepSpeedCPUAdam(groups, adamw_mode=True)
