"""What do the stored results say? Writes results/README.md from the files beside it; measures nothing.

python benchmarks/summary.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

import overall
import product_tables
import service_tables
import standings
import tally

RESULTS = Path(__file__).parent / "results"
NOTES = {
    "smollm2-135m": "WikiText-2. The weights of this model lie on a 4-bit grid of groups of 32 already (it is rebuilt from a "
    "Q4_1 GGUF), so 4 bits flatter every plan; judge by 2 to 3.5.",
    "minilm-l6": "sentences of STS-B; the loss is the cosine distance of the pooled embedding.",
    "dinov2-small": "images of ImageNet; the loss is the cosine distance of the class token. At int3's size `kl_fisher` loses "
    "to uniform: it saves its bits in the first layers, whose errors reinforce each other, which a sum over units cannot see.",
}


def provenance(document: dict[str, Any]) -> str:
    machine, versions = document["machine"], document["versions"]
    sources = "".join(
        f" --{name} {document[name]}" for name in ("calibration", "evaluation") if document.get(name, "shipped") != "shipped"
    )
    return (
        f"`{document['command']}{sources}`, {document['date']}, {machine['processor']}, {machine['cores']} cores, "
        f"{machine['torch_threads']} torch thread(s), torch {versions['torch']}, transformers {versions['transformers']}"
    )


def quality(document: dict[str, Any], name: str) -> list[str]:
    """One row a size: every competitor's measured loss, the least in bold."""
    competitors = ["kl_fisher", "uniform", "output_error", "weight_error", "random"]
    by_size: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for cell in document["cells"]:
        kind = cell["plan"].replace(",", "").split()[0]
        by_size.setdefault(cell["size"], {}).setdefault(kind, []).append(cell)
    present = [kind for kind in competitors if kind in next(iter(by_size.values()))]
    lines = [
        f"### {name}: {document['quantity']}, lower is better",
        "",
        f"Held-out data: {NOTES[name.split('.')[0]]} Calibrated on {document['calibration']}. "
        f"Palette: {', '.join(document['palette'])}.",
        "",
        "| size | " + " | ".join(present) + " | below uniform | measured / predicted |",
        "| --- |" + " --- |" * (len(present) + 2),
    ]
    for size, kinds in by_size.items():
        # The uniform plan is the better of two, measured; the random plans are averaged.
        losses = [(np.mean if kind == "random" else np.min)([cell["loss"] for cell in kinds[kind]]) for kind in present]
        shown = " | ".join(f"**{value:.4g}**" if value == min(losses) else f"{value:.4g}" for value in losses)
        plan = kinds["kl_fisher"][0]
        below, ratio = 1 - losses[0] / losses[1], plan["loss"] / plan["predicted"]
        lines.append(f"| {size} ({plan['limit_bytes']:,} bytes) | {shown} | {below:.0%} | {ratio:.2f} |")
    return [*lines, "", provenance(document), ""]


def judge(document: dict[str, Any], name: str) -> list[str]:
    formats = list(document["metrics"][0]["rank_correlation"])
    lines = [
        f"### {name}: Spearman's rank correlation with the measured divergence of {len(document['units'])} single units",
        "",
        "| metric | " + " | ".join(formats) + " | all pairs | measured / estimated (median, " + formats[1] + ") |",
        "| --- |" + " --- |" * (len(formats) + 2),
    ]
    for row in document["metrics"]:
        numbers = " | ".join(f"{value:.3f}" for value in row["rank_correlation"].values())
        ratio = row["median_measured_over_estimated"][formats[1]]
        shown = f"{ratio:.2f}" if row["metric"] == "kl_fisher" else "other units"
        lines.append(f"| {row['metric']} | {numbers} | {row['rank_correlation_all_pairs']:.3f} | {shown} |")
    return [*lines, "", provenance(document), ""]


def cost(document: dict[str, Any], name: str) -> list[str]:
    again = max(document["planning_again_milliseconds"].values())
    stages = ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in document["stage_seconds"].items() if seconds >= 1)
    return [
        f"### {name}: {document['units']} units, {len(document['formats'])} formats",
        "",
        f"Profile {document['profile_seconds']:.0f} s ({stages}), peak memory {document['peak_memory_bytes'] / 1e9:.2f} GB; "
        f"planning again at {len(document['planning_again_milliseconds'])} budgets at most {again:.0f} ms each. "
        f"A plain forward and backward pass over as many tokens takes {document['plain_pass_seconds']:.0f} s: the estimate takes "
        f"{document['stage_seconds']['estimate'] / document['plain_pass_seconds']:.1f} times that.",
        "",
        provenance(document),
        "",
    ]


def solvers() -> list[str]:
    """The comparison of solvers, from the CSV and the JSON beside it; nothing where it was not run."""
    file = RESULTS / "solvers.csv"
    if not file.exists():
        return []
    document = json.loads(file.with_suffix(".json").read_text())
    machine, rows = document["machine"], tally.read(file)
    versions = ", ".join(f"{name} {version}" for name, version in document["versions"].items())
    return [
        "## Solvers",
        "",
        "Each run in a process of its own on one core; imports and a small problem come before the clock, our certificate not.",
        "Medians and worst cases are over budgets drawn at random, ratios over the same problems. *Added* memory is the peak",
        "above imports and tables, and includes the processes that CBC and CP-SAT run in. *Above the best known*: of all that",
        "ran, in exact integers; 1.0 is twice the loss. Rivals see losses as they are, like divergences in nats, and CBC and",
        "HiGHS have absolute tolerances. By which rules rivals are left out stands in `benchmarks/solvers.py`.",
        "",
        *tally.comparison(rows),
        "",
        "How times grow on groups of weights, six options each, medians of three; the exponent k of n^k that fits best:",
        "",
        *tally.growth(rows),
        "",
        "![Time against items, both logarithmic](solvers.svg)",
        "",
        f"`{document['command']}`, {document['date']}, {machine['processor']}, {machine['cores']} cores, one thread, {versions}",
        "",
    ]


def streaming(document: dict[str, Any], name: str) -> list[str]:
    kills = f" Killed {document['killed']} times and gone on, it gave the same table." if document["same_table"] else ""
    whole, block, table, peak = (
        f"{document[key] / 1e9:.2f} GB"
        for key in ("model_bytes_float32", "block_bytes_float32", "embedding_bytes_float32", "peak_bytes")
    )
    return [
        f"A {name} of {document['parameters'] / 1e9:.2f} billion parameters ({whole} in float32; a block {block}, the embedding "
        f"{table}) was profiled with a peak of {peak} in {document['seconds']:,.0f} s.{kills}",
        "",
        provenance(document),
        "",
    ]


def scatter(document: dict[str, Any], name: str) -> list[str]:
    rows = [
        f"| {kind} | {one['draws']} | {one['relative_scatter']:.0%} | {one['rank_correlation']:.3f} |"
        for kind, one in document["found"].items()
    ]
    return [
        f"### {name}: what kl_fisher's estimate owes to chance, {document['examples']} examples",
        "",
        "| what is drawn | draws | scatter over seeds | rank correlation with measured units |",
        "| --- | --- | --- | --- |",
        *rows,
        "",
        provenance(document),
        "",
    ]


def tournament(document: dict[str, Any], name: str) -> list[str]:
    if not standings.losses(document, "none"):
        return [f"### {name}", "", "Begun; no plan has been measured yet.", ""]
    (RESULTS / f"tournament-{name}.svg").write_text(standings.picture(document, name))
    return [*standings.section(document, name), provenance(document), ""]


def shrink(document: dict[str, Any], name: str) -> list[str]:
    others = list(next(iter(document["found"].values())))
    shares = list(next(iter(document["found"].values()))[others[0]])
    lines = [
        "Rank correlation with the measured single units of the tournament when the logarithm of kl_fisher's losses gives way to "
        "another's by a share: all pairs, and the mean within 2, 3 and 4 bits.",
        "",
        "| model | towards | " + " | ".join(shares) + " |",
        "| --- | --- |" + " --- |" * len(shares),
    ]
    for model, found in document["found"].items():
        for other, by_share in found.items():
            cells = []
            for one in by_share.values():
                within = np.mean([value for key, value in one.items() if key != "all"])
                cells.append(f"{one['all']:.3f} ({within:.3f})")
            lines.append(f"| {model} | {other} | " + " | ".join(cells) + " |")
    return [*lines, "", provenance(document), ""]


def around(document: dict[str, Any], name: str) -> list[str]:
    shares = [key for key in next(iter(next(iter(document["found"].values())).values())) if key[0].isdigit()]
    lines = [
        "What plans of kl_fisher lose on held-out data when they are made again with units priced among the others as the plan "
        "rounds them, the products counted by a share, as a multiple of what they lost (two standard errors of the pairs; how "
        "many units took another format). Beside it what the sum over units and the sum with half the products promise, over "
        "what the plan loses on the data of the estimate.",
        "",
        "| model, size | " + " | ".join(f"share {share}" for share in shares) + " | sum promises | with products |",
        "| --- |" + " --- |" * (len(shares) + 2),
    ]
    for model, by_size in document["found"].items():
        for size, one in by_size.items():
            cells = [
                f"{one[share]['ratio']:.3f} ± {2 * one[share]['stderr']:.3f} ({one[share]['moved']})"
                if one[share]["moved"]
                else "the same plan"
                for share in shares
            ]
            promised = [f"{one[key] / one['same_data']:.2f}" for key in ("predicted", "with_products")]
            lines.append(f"| {model} {size} | " + " | ".join((*cells, *promised)) + " |")
    means = []
    for share in shares:
        rows = [one[share] for by_size in document["found"].values() for one in by_size.values()]
        known = [row["ratio"] for row in rows if 2 * row["stderr"] < 0.5]
        means.append(f"{share}: {np.exp(np.mean(np.log(known))):.3f} ({len(known)} rows)")
    told = f"Geometric means of the rows that are known to within a half, by share: {'; '.join(means)}."
    return [*lines, "", told, "", provenance(document), ""]


def routers(document: dict[str, Any], name: str) -> list[str]:
    free, held = document["found"]["as they like"], document["found"]["as noted"]
    rows = len(document["rows"])
    top = np.median([row["top_hundredth"] for row in document["rows"]])
    return [
        f"### {name}: what a router that changes its mind costs",
        "",
        f"One unit rounded at a time, {rows} pairs of unit and format. Measured over estimated by kl_fisher (median): "
        f"{free['median_measured_over_estimated']:.2f}; with every token sent where the untouched model sends it "
        f"{held['median_measured_over_estimated']:.2f}. Rank correlation {free['rank_correlation']:.3f} and "
        f"{held['rank_correlation']:.3f}. One token in a hundred bears {top:.0%} of the divergence (median).",
        "",
        provenance(document),
        "",
    ]


def peers(document: dict[str, Any], name: str) -> list[str]:
    lines = [
        f"### {name}: how long others take for the same search",
        "",
        "The same tokens and the same menu (2, 3, 4, 5, 6 and 8 bits, groups of 64) at 4 stored bits, imports and loading apart. "
        "Processor seconds of one thread; other work shared the machine, so differences below a tenth mean nothing.",
        "",
        "| program | search, processor seconds | peak GB | dtype | load average |",
        "| --- | --- | --- | --- | --- |",
    ]
    for tool, entry in sorted(document.items(), key=lambda item: item[1]["search_process_seconds"]):
        versions = " ".join(
            f"{key} {value}" for key, value in entry["versions"].items() if key in ("nvidia-modelopt", "auto-round")
        )
        lines.append(
            f"| {tool} {versions} | {entry['search_process_seconds']:,.0f} | {entry['peak_memory_bytes'] / 1e9:.1f} "
            f"| {entry['dtype']} | {entry['load_average']:.1f} |"
        )
    commands = "; ".join(dict.fromkeys(f"`{entry['command']}`" for entry in document.values()))
    first = next(iter(document.values()))
    machine = first["machine"]
    return [*lines, "", f"{commands}; {first['date']}, {machine['processor']}, {machine['torch_threads']} torch thread(s)", ""]


def cpu_products(document: dict[str, Any], name: str) -> list[str]:
    return [*product_tables.cpu_matmul(document), provenance(document), ""]


def decode(document: dict[str, Any], name: str) -> list[str]:
    return [*product_tables.decode(document, name), provenance(document), ""]


SECTIONS = (
    ("tournament", "The tournament of estimators", tournament),
    ("quality", "Quality at equal stored bytes", quality),
    ("judge", "Metrics against measured single units", judge),
    ("scatter", "Labels or directions", scatter),
    ("shrink", "Shrinking towards a steadier estimate", shrink),
    ("around", "Pricing units among the others", around),
    ("routers", "Routers", routers),
    ("cost", "Cost", cost),
    ("peers", "Other programs", peers),
    ("streaming", "Streaming", streaming),
    ("cpu", "Products from packed words on the CPU", cpu_products),
    ("decode", "Writing", decode),
)


def main() -> None:
    lines = [
        "# Results",
        "",
        "Written by `python benchmarks/summary.py` from the JSON and CSV files in this folder, which hold every number, measured",
        "losses with their standard errors. Absolute times are of the machine named; compare ratios of one run.",
        "",
    ]
    for prefix, title, section in SECTIONS:
        files = sorted(RESULTS.glob(f"{prefix}-*.json"))
        if files:
            lines += [f"## {title}", ""]
        documents = {file.stem.removeprefix(f"{prefix}-"): json.loads(file.read_text()) for file in files}
        for name, document in documents.items():
            lines += section(document, name)
        if prefix == "tournament":
            lines += ["### All models", "", *overall.section(documents)]
    lines += solvers()
    lines += service_tables.section(RESULTS)
    (RESULTS / "README.md").write_text("\n".join(lines).rstrip() + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
