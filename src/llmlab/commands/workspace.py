"""`llmlab wandb workspace`: the dashboard for runs of llmlab in a project of Weights & Biases, as code."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional, TypeVar

from llmlab.errors import UserError
from llmlab.registry import near

if TYPE_CHECKING:
    from wandb import Api
    from wandb_workspaces.workspaces import Workspace


T = TypeVar("T")
USAGE = """\
llmlab wandb workspace [project=llmlab] [entity=ACCOUNT_OR_TEAM] [name=llmlab] [by=PART ...] [out=FILE] [--dry-run]

Creates a dashboard in a Weights & Biases project: losses by part, speed, routing (pip install wandb-workspaces).
by=attention by=kinds.local.window   slots by which losses are grouped
out=FILE                             write the dashboard as JSON; --dry-run prints it and creates nothing"""

# Parts by which losses are grouped, unless the user names others with by=.
PARTS = ("attention", "ffn", "moe", "position", "norm", "optimizer")


@dataclass
class Arguments:
    project: str = "llmlab"
    entity: Optional[str] = None  # a user or a team; None: the account's own
    name: str = "llmlab"  # of the view
    by: list[str] = field(default_factory=list)  # places of parts, by=attention by=kinds.local.window
    out: Optional[str] = None  # write the view as JSON there
    dry_run: bool = False  # make nothing in W&B


def main(argv: Sequence[str]) -> int | None:
    from llmlab.commands.arguments import parse

    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    if argv[0] != "workspace":
        raise UserError(f"wandb {argv[0]}: there is no such command; {near(argv[0], ['workspace'])}")
    given = parse(["dry_run=true" if a == "--dry-run" else a for a in argv[1:]], Arguments, "wandb workspace")
    try:
        import wandb_workspaces.workspaces  # noqa: F401
    except ImportError:
        raise UserError(
            "llmlab wandb workspace: the package wandb-workspaces is not installed; pip install wandb-workspaces"
        ) from None
    entity = given.entity or ("" if given.dry_run else _own_entity())
    view = workspace(entity, given.project, given.name, given.by or PARTS)
    # wandb-workspaces 0.4 has no public way to a view as JSON, only `_spec`.
    text = json.dumps(view._spec, indent=1, sort_keys=True)
    if given.out:
        from llmlab.files import write_atomic

        write_atomic(Path(given.out), text + "\n")
        print(f"the view is in {given.out}")
    elif given.dry_run:
        print(text)
    if not given.dry_run:
        print(f"made {_save(view)}")
    return 0


def workspace(entity: str, project: str, name: str, by: Sequence[str]) -> Workspace:
    """The view: losses over tokens and over FLOPs, by part; throughput, gradients; load of experts; samples."""
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

    def line(x: str, y: str, part: str | None = None, **more: Any) -> Any:
        title = f"{y.replace('_', ' ')} over {x}" + (f", by {part}" if part else "")
        if part is not None:
            # W&B nests keys at dots, so runs are logged with a slash inside a part's place.
            key = wr.Config(f"parts.{part.replace('.', '/')}")
            more = {"groupby": key, "groupby_aggfunc": "mean", "groupby_rangefunc": "minmax", **more}
        return wr.LinePlot(title=title, x=x, y=[y], title_x=x, **more)

    def losses(x: str, **more: Any) -> Any:
        panels = [line(x, "val_loss", **more), line(x, "loss", **more)]
        panels += [line(x, "val_loss", part, **more) for part in by]
        return ws.Section(name=f"Loss over {x}", panels=panels, is_open=True)

    return ws.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=[
            losses("tokens"),
            losses("flops", log_x=True),
            ws.Section(
                name="Throughput and gradients",
                panels=[
                    line("tokens", "tokens_per_second"),
                    line("tokens", "grad_norm"),
                    line("tokens", "lr"),
                    wr.ScatterPlot(title="validation loss against FLOPs", x="flops", y="val_loss", log_x=True),
                ],
                is_open=True,
            ),
            ws.Section(
                name="Experts",
                panels=[
                    line("tokens", "load/max_over_mean"),
                    wr.LinePlot(title="load of each layer's experts", x="tokens", metric_regex="load/.*layer.*"),
                ],
            ),
            ws.Section(name="Samples", panels=[wr.WeavePanelSummaryTable(table_name="samples")]),
        ],
        settings=ws.WorkspaceSettings(x_axis="tokens", max_runs=50),
        runset_settings=ws.RunsetSettings(
            pinned_columns=[
                "summary:val_loss",
                "summary:val_bits_per_byte",
                "summary:flops",
                "summary:tokens_per_second",
            ]
        ),
    )


def _own_entity() -> str:
    # None for an account that has no entity yet.
    return _online(lambda api: api.default_entity) or ""


def _save(view: Workspace) -> str:
    import contextlib
    import io

    # wandb-workspaces prints a line of its own, "View saved: URL".
    def save(api: Api) -> str:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            return view.save().url

    return _online(save)


def _online(ask: Callable[[Api], T]) -> T:
    """The answer of W&B to a question; one line where there is no key, no network, or no such place."""
    from llmlab.training.loggers.account import offline_reason

    if why := offline_reason("online"):
        raise UserError(
            f"llmlab wandb workspace: W&B can't be asked, {why}; --dry-run out=FILE writes the view to a file"
        )
    import wandb

    wandb.setup(wandb.Settings(silent=True))
    try:
        return ask(wandb.Api(timeout=20))
    except Exception as e:
        reason = (str(e).splitlines() or [type(e).__name__])[0]
        raise UserError(f"llmlab wandb workspace: W&B refused: {reason}") from e
