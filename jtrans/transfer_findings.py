"""What the runs on adversarial and knowledge transferability show, in numbers and in words."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.stats

from jtrans import stats
from jtrans.metrics import SuccessMatrix

PENALTY = {
    "angle": "angle to the surrogate's directions (degrees)",
    "tau1": "tau1, virtual attack from the surrogate (0 to 1)",
    "tau2": "tau2, virtual attack from the surrogate (0 to 1)",
    "success": "errors by FGSM from the surrogate (share of images got right)",
    "success_own": "errors by FGSM from itself (share of images got right)",
    "accuracy": "test accuracy (share of images)",
}
RATES = ("all_images", "target_right", "both_right")  # the columns of `attacks.DENOMINATORS`
KNOWLEDGE = {
    **{
        f"{attack}_{measure}_{across}": f"{text}, {named}, {way}"
        for attack, named in (("virtual", "virtual attack"), ("fgsm_liang", "FGSM"), ("pgd_liang", "PGD"))
        for across, way in (("S_T", "source to target"), ("T_S", "target to source"))
        for measure, text in (("tau1", "tau1"), ("tau2", "tau2"), ("tau1tau2", "tau1 tau2"))
    },
    "fgsm_liang_success": "success of FGSM",
    "pgd_liang_success": "success of PGD",
    "logme": "LogME",
    "leep": "LEEP",
    "h_score": "H-score",
    "cka": "linear CKA with the reference",
    "parameters": "number of parameters",
}
VERDICTS = {True: "holds", False: "does not hold", None: "open"}
MEASURES = {
    "tau1_S_T": "tau1, source to target",
    "tau1_T_S": "tau1, target to source",
    "tau2_S_T": "tau2, source to target",
    "tau2_T_S": "tau2, target to source",
    "tau1tau2_S_T": "tau1 tau2, source to target",
    "tau1tau2_T_S": "tau1 tau2, target to source",
    "transfer_loss_S": "transfer loss",
    "gradient_matching_distance": "gradient matching distance",
}


def over_seeds(columns: dict[str, np.ndarray], name: str, width: float, level: float) -> tuple[np.ndarray, np.ndarray]:
    """The scales `[S]` of the drift, and a column of the synthetic table there for each seed, `[seeds, S]`."""
    rows = (columns["width"] == width) & (columns["level"] == level)
    of_seed = [rows & (columns["seed"] == seed) for seed in np.unique(columns["seed"])]
    return columns["scale"][of_seed[0]], np.stack([columns[name][r] for r in of_seed])


def summarize_synthetic(columns: dict[str, np.ndarray]) -> dict[str, Any]:
    """How each measure moves with the drift, ready for JSON.

    Returns:
      `num_seeds`, and in `rows` for each width, level and measure: its value without drift and at the largest, and
      Spearman's rank correlation with the scale, each as `{mean, low, high}` over seeds.
    """
    rows = []
    for width, level in sorted({*zip(columns["width"].tolist(), columns["level"].tolist(), strict=True)}):
        for name in MEASURES:
            scale, values = over_seeds(columns, name, width, level)
            ranks = np.array([scipy.stats.spearmanr(scale, of_seed).statistic for of_seed in values])
            found = {"first": values[:, 0], "last": values[:, -1], "spearman": ranks}
            intervals = {key: stats.plain(stats.mean_ci(seeds)) for key, seeds in found.items()}
            rows.append({"width": width, "level": level, "measure": name, **intervals})
    return {"num_seeds": len(np.unique(columns["seed"])), "rows": rows}


def describe_synthetic(summary: dict[str, Any]) -> str:
    """The findings as a table."""
    lines = [
        f"{'width':>5} {'level':>5}  {'measure':28} {'no drift':24} {'largest drift':24} rank correlation with drift"
    ]
    for row in summary["rows"]:
        first, last, ranks = (stats.interval_text(row[k], 3) for k in ("first", "last", "spearman"))
        lines.append(
            f"{row['width']:5.0f} {row['level']:5.0f}  {MEASURES[row['measure']]:28} {first:24} {last:24} {ranks}"
        )
    many = summary["num_seeds"] > 1
    lines.append(f"means [95 % intervals] over {summary['num_seeds']} seeds" if many else "one problem: no intervals")
    return "\n".join(lines)


def by_source(table: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    """A column of the knowledge table, `[sources, seeds]`, the sources in the table's order."""
    return np.stack([table[name][table["source"] == source] for source in dict.fromkeys(table["source"].tolist())])


def summarize_knowledge(table: Mapping[str, np.ndarray], rng: np.random.Generator) -> dict[str, Any]:
    """How every measure goes with knowledge transfer over the sources, ready for JSON.

    Args:
      table: by columns, `source`, `seed`, `transfer_loss` and the measures of `KNOWLEDGE`.
      rng: draws the seeds of the intervals.

    Returns:
      `sources`: for each, every column as `{mean, low, high}` over seeds. `lost`: the `source` and `seed` of networks
      that measure nothing, and why they are `lost`. `correlations` with the transfer loss, for each measure:

      - `pearson` and `spearman`, `{mean, low, high, p_value}` as `stats.correlation` gives them, or None where there is
        none, and `undefined`, why there is none, else None;
      - `missing`, at how many seeds of all sources the measure or the transfer loss has no value, and `left_out`, the
        sources where it has none at any seed;
      - whether it `falls` with the loss: True where the whole interval of Spearman's lies below 0, False where it lies
        above, else None.
    """
    columns = [name for name in table if name not in ("source", "seed", "lost")]
    values = {name: by_source(table, name) for name in columns}
    names = list(dict.fromkeys(table["source"].tolist()))
    sources = [
        {"source": source, **{name: stats.plain(stats.mean_ci(values[name][i])) for name in columns}}
        for i, source in enumerate(names)
    ]
    loss = values["transfer_loss"]
    correlations = [{"measure": name, **_correlations(values[name], loss, names, rng)} for name in KNOWLEDGE]
    lost = [
        {"source": str(table["source"][i]), "seed": int(table["seed"][i]), "lost": str(table["lost"][i])}
        for i in np.flatnonzero(table["lost"] != "")
    ]
    return {"num_seeds": loss.shape[1], "sources": sources, "lost": lost, "correlations": correlations}


def _correlations(
    values: np.ndarray, loss: np.ndarray, names: Sequence[str], rng: np.random.Generator
) -> dict[str, Any]:
    """How a measure goes with the transfer loss, both `[sources, seeds]`."""
    values, loss = (np.where(np.isnan(values) | np.isnan(loss), np.nan, each) for each in (values, loss))
    mean, mean_loss = (stats.mean_ci(of_seeds, axis=1).mean for of_seeds in (values, loss))
    valid = np.isfinite(mean) & np.isfinite(mean_loss)
    row: dict[str, Any] = dict.fromkeys(("pearson", "spearman", "undefined", "falls"))
    row["missing"] = int(np.isnan(values).sum())
    row["left_out"] = [name for name, has_value in zip(names, valid, strict=True) if not has_value]
    if valid.sum() < 3:
        row["undefined"] = "fewer than 3 sources have values"
    elif stats.constant(mean[valid]):  # as the number of parameters of one architecture
        row["undefined"] = "the same for every source"
    elif stats.constant(mean_loss[valid]):
        row["undefined"] = "the transfer loss is the same for every source"
    else:
        for kind in ("pearson", "spearman"):
            statistic, p_value = stats.correlation(values, loss, rng, ranks=kind == "spearman")
            row[kind] = {**stats.plain(statistic), "p_value": p_value}
        low, high = row["spearman"]["low"], row["spearman"]["high"]
        row["falls"] = high < 0 if high < 0 or low > 0 else None
    return row


def describe_knowledge(summary: Mapping[str, Any]) -> str:
    """Both tables: the sources, and what goes with their transfer loss."""
    shown = (
        "transfer_loss",
        "transfer_accuracy",
        "sgd_accuracy",
        "pgd_liang_tau1_S_T",
        "pgd_liang_tau2_S_T",
        "pgd_liang_success",
    )
    longest = max(len(row["source"]) for row in summary["sources"]) + 2
    lines = [f"{'source':{longest}}" + "".join(f"{name:24}" for name in shown)]
    lines += [
        f"{row['source']:{longest}}" + "".join(f"{stats.interval_text(row[name], 3):24}" for name in shown)
        for row in summary["sources"]
    ]
    if summary["lost"]:
        listed = (f"{row['source']}, seed {row['seed']} ({row['lost']})" for row in summary["lost"])
        lines.append(f"left out: {'; '.join(listed)}")
    heads = f"{'Pearson [95 %]':28}{'Spearman [95 %]':28}{'p (both)':16}smaller loss, larger?"
    width = max(map(len, KNOWLEDGE.values())) + 2
    lines.append(f"\n{'correlation with the transfer loss':{width}}{heads}")
    for row in summary["correlations"]:
        text = row["undefined"]
        if text is None:
            both = [row[kind] for kind in ("pearson", "spearman")]
            p_values = f"{both[0]['p_value']:.3f}, {both[1]['p_value']:.3f}"
            text = "".join(f"{stats.interval_text(found, 2):28}" for found in both)
            text += f"{p_values:16}{VERDICTS[row['falls']]}"
        lines.append(f"{KNOWLEDGE[row['measure']]:{width}}{text}  {describe_missing(row)}".rstrip())
    lines.append(
        "intervals: other seeds of the same sources; p: exact permutation test over sources, two-sided\n"
        "the claim of Liang et al. (2021): taus and success are larger where the transfer loss is smaller.\n"
        "It holds for a measure where Spearman's whole interval lies below 0, and not where it lies above"
    )
    return "\n".join(lines)


def describe_missing(row: Mapping[str, Any]) -> str:
    """What a measure's correlation leaves out, in words; nothing where it leaves out nothing."""
    left_out = f"; without {len(row['left_out'])}: {', '.join(row['left_out'])}" if row["left_out"] else ""
    return f"({row['missing']} values missing{left_out})" if row["missing"] else ""


def penalty(found: Mapping[float, Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """What each coefficient of the penalty does, by columns.

    Args:
      found: by coefficient, for each of `PENALTY` its value for every network, `[M]`.

    Returns:
      `coefficient`, how many of its networks are `lost` (their outputs are not finite) and in no mean, and for each
      measure the mean with its 95 % interval over networks.
    """
    rows = []
    for coefficient, measures in found.items():
        intervals = {name: stats.plain(stats.mean_ci(measures[name])) for name in PENALTY}
        bounds = {f"{name}_{bound}": value for name, i in intervals.items() for bound, value in i.items()}
        rows.append({"coefficient": coefficient, "lost": int(np.isnan(measures["accuracy"]).sum()), **bounds})
    return stats.columns(rows)


def describe_penalty(table: Mapping[str, np.ndarray]) -> str:
    """The table."""
    lines = [f"{'coefficient':>11}  " + "".join(f"{name:24}" for name in PENALTY)]
    for i, coefficient in enumerate(table["coefficient"]):
        cells = (stats.cell(table, name, i, 3) for name in PENALTY)
        lost = f"{table['lost'][i]:.0f} networks lost" if table["lost"][i] else ""
        lines.append((f"{coefficient:11g}  " + "".join(f"{cell:24}" for cell in cells) + lost).rstrip())
    return "\n".join(lines)


def matrix(found: Mapping[str, SuccessMatrix], names: Sequence[str]) -> dict[str, np.ndarray]:
    """Success matrices, by columns: a row for each attack, source and target.

    Args:
      found: for each attack what `metrics.success_matrix` gives, of one network of each name or, stacked, of a network
        for each seed.
      names: of the networks.

    Returns:
      `attack`, `source`, `target`; for each of `RATES` the share of images that the target gets wrong under attack,
      with its 95 % interval, over images (Wilson's) or over seeds, and the number of images (their mean over seeds);
      `unmoved`, how many images the attack on the source left as they are.
    """
    tables = []
    for attack, (rates, counts, unmoved) in found.items():
        if rates.ndim > 3:
            (rate, low, high), count = stats.mean_ci(rates), counts.mean(0)
        else:
            (rate, low, high), count = stats.wilson(np.rint(rates * counts), counts), counts
        pairs = {"source": np.repeat(names, len(names)), "target": np.tile(names, len(names))}
        unmoved = np.repeat(unmoved.reshape(-1, len(names)).mean(0), len(names))
        table = {"attack": np.full(len(names) ** 2, attack), **pairs, "unmoved": unmoved}
        for k, name in enumerate(RATES):
            arrays = {name: rate, f"{name}_low": low, f"{name}_high": high, f"{name}_count": count}
            table |= {column: array[..., k].ravel() for column, array in arrays.items()}
        tables.append(table)
    return {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}


def describe_matrix(table: Mapping[str, np.ndarray]) -> str:
    """A matrix for each attack, in percent of the images that the target gets right, and what has no direction."""
    names = list(dict.fromkeys(table["source"].tolist()))
    width = max(map(len, names))
    lines = []
    for attack in dict.fromkeys(table["attack"].tolist()):
        of = table["attack"] == attack
        reshaped = lambda column, of=of: np.reshape(table[column][of], (len(names), -1))
        share, unmoved = 100 * reshaped("target_right"), reshaped("unmoved")
        lines.append(f"{attack}: errors in % of the images that the target gets right; a row for each source")
        lines += [
            f"{name:{width}} " + " ".join(f"{s:5.1f}" for s in row) for name, row in zip(names, share, strict=True)
        ]
        lines += [
            f"{name}: the attack leaves {count:g} images as they are"
            for name, count in zip(names, unmoved[:, 0], strict=True)
            if count
        ]
    return "\n".join(lines)
