"""The panel that a run ends with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmlab.measures import COMPARED, LIKELIHOODS
from llmlab.training.progress import duration


def print_panel(
    record: Mapping[str, Any], folder: str, sample: tuple[str, str] | None, next_commands: list[tuple[str, str]]
) -> None:
    """Print the panel: where, how well, how large, how fast, a sample (prompt, continuation); below, what to try next.

    The commands stand below it, not in it, and are never cut in two: so they can be copied.
    """
    from rich.console import Console, Group
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    # rich would cut a long path with an ellipsis, which can't be copied.
    table.add_column(overflow="fold")
    for name, value in rows(record, folder):
        # A Text: in a str rich would read [brackets] as markup, and a path may have them.
        table.add_row(name, Text(value))
    body: list[Any] = [table]
    if sample is not None:
        body += [Text(), Text("sample", style="bold"), Text.assemble((sample[0], "dim"), sample[1])]
    # rich would colour every number and path in the panel of its own accord.
    console = Console(highlight=False)
    console.print(Panel(Group(*body), title=f"{record['status']} at step {record['steps']:,}", expand=False))
    if next_commands:
        console.print(Text("try next", style="bold"))
        for command, why in next_commands:
            console.print(Text(why, style="dim"))
            # soft_wrap: the terminal breaks it and not rich, so that it is copied as one line.
            console.print(Text(f"  {command}", style="cyan"), soft_wrap=True)


def rows(record: Mapping[str, Any], folder: str) -> list[tuple[str, str]]:
    metrics, out = record["metrics"], [("run folder", folder)]
    if "val_loss" in metrics:
        out.append(("validation loss", f"{metrics['val_loss']:.4f}"))
    if "val_perplexity" in metrics:
        out.append(("perplexity", f"{metrics['val_perplexity']:.2f}"))
    if "val_bits_per_byte" in metrics:
        bits = metrics["val_bits_per_byte"]
        line = f"{bits:.3f}"
        rivals = [(n, metrics.get(f"kneser_ney_{n}_bits_per_byte")) for n in ("bigram", "trigram")]
        known = [f"{n} {b:.3f} ({100 * (bits / b - 1):+.0f}%)" for n, b in rivals if b]
        out.append(("bits per byte", line + (f"  Kneser-Ney {', '.join(known)}" if known else "")))
    for name, kind in (record.get("measures") or {}).items():
        if kind not in LIKELIHOODS and (value := metrics.get(f"val_{name}")) is not None:
            out.append((name.replace("_", " "), f"{value:.4f}"))
    out += [(name.replace("_", " "), f"{v:.4f}") for name in COMPARED if (v := metrics.get(f"val_{name}")) is not None]
    total, active = record["parameters"]["total"], record["parameters"]["active"]
    trainable = record["parameters"].get("trainable", total)  # not in older records
    sparse, frozen = f", {active:,} active" * (active != total), f", {trainable:,} that learn" * (trainable != total)
    out.append(("parameters", f"{total:,}{sparse}{frozen}"))
    flops = record["flops_per_token"] * record["tokens_seen"]
    out.append(("FLOPs", f"{flops:.3g} ({record['flops_per_token']:.3g} a token, {record['tokens_seen']:,} tokens)"))
    if record.get("tokens_per_second"):
        share = f", {100 * record['mfu']:.0f} % of the measured matmul peak" if record.get("mfu") else ""
        out.append(("throughput", f"{record['tokens_per_second']:,.0f} tokens/s{share}"))
    out.append(("time", duration(record["wall_seconds"])))
    out.append(("peak memory", f"{record['peak_memory_bytes'] / 2**20:,.0f} MiB"))
    out += [(name, about["see"]) for name, about in (record.get("loggers") or {}).items() if "see" in about]
    return out
