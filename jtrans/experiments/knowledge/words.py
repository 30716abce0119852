"""How adversarial transferability goes with the transfer of knowledge, in numbers and in words."""

import itertools
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas

from jtrans import stats
from jtrans.experiments import matrix
from jtrans.harness import figures, tables
from jtrans.harness.experiment import Results

ATTACKS = {"virtual": "virtual attack", "fgsm_liang": "FGSM", "pgd_liang": "PGD"}
# Who is attacked and who is measured: the first experiment of Liang et al. (2021) is `T_S`, the second `S_T`.
WAYS = {"S_T": "source attacked, reference measured", "T_S": "reference attacked, source measured"}
TAUS = {"tau1": "tau1", "tau2": "tau2", "tau1tau2": "tau1 tau2"}
# The measures of a source on a target domain that are correlated with the transfer loss there.
OF_TARGET = {
    **{
        f"{attack}_{tau}_{way}": f"{tau_text}, {attack_text}, {way_text}"
        for attack, attack_text in ATTACKS.items()
        for way, way_text in WAYS.items()
        for tau, tau_text in TAUS.items()
    },
    **{
        f"{attack}_success_{way}": f"success of {ATTACKS[attack]}, {way_text}"
        for attack in ("fgsm_liang", "pgd_liang")
        for way, way_text in WAYS.items()
    },
    "logme": "LogME",
    "leep": "LEEP",
    "h_score": "H-score",
    "gbc": "GBC",
    "cka": "linear CKA with the reference",
}
# Those of a source alone.
OF_SOURCE = {"source_accuracy": "accuracy of the source", "parameters": "number of parameters", "stratum": "stratum"}
CAPTIONS = {**OF_TARGET, **OF_SOURCE}
# The hypotheses, fixed beforehand: each rank correlation with the transfer loss is below 0.
PRIMARY = tuple(f"pgd_liang_{tau}_{way}" for tau in ("tau1", "tau2") for way in WAYS)
LEVEL = 0.05  # of the four hypotheses together

TOLD = ("transfer_loss", "transfer_accuracy", "sgd_accuracy", "source_accuracy", *PRIMARY)
KINDS = ("pearson", "spearman")
VERDICTS = {True: "holds", False: "does not hold", None: "open"}
NOTE = """\
intervals: 95 %, by a bootstrap over sources; p: two-sided permutation tests over sources of the rank correlation;
"given accuracy": the partial rank correlation given the accuracy of the source on its own classes
the claim of Liang et al. (2021): attacks transfer better where the transfer loss is smaller. Its four hypotheses, tau1
and tau2 of PGD both ways, are adjusted together by Holm: each holds where its adjusted p is at most 0.05 and the rank
correlation below 0, does not hold where that is above 0, and is open otherwise"""


def by_source(table: pandas.DataFrame, name: str, domain: str = "target") -> np.ndarray:
    """A column of a domain's rows, `[sources, seeds]`, the sources in the table's order."""
    rows = table[table["domain"] == domain]
    return np.stack([values.to_numpy(float) for _, values in rows.groupby("source", sort=False)[name]])


def compared(table: pandas.DataFrame, name: str) -> np.ndarray:
    """What is correlated of a column, `[sources, seeds]`: with a contrast, its value on the target less that there."""
    if name in OF_SOURCE or not has_contrast(table):
        return by_source(table, name)
    return by_source(table, name) - by_source(table, name, "contrast")


def has_contrast(table: pandas.DataFrame) -> bool:
    """Whether there is a second target domain."""
    return bool((table["domain"] == "contrast").any())


def summarize(table: pandas.DataFrame, rng: np.random.Generator) -> dict[str, Any]:
    """How every measure of `CAPTIONS` goes with knowledge transfer over the sources, ready for JSON.

    Returns:
      `sources`: for each, by domain, every column of numbers as `{mean, low, high}` over seeds. `lost`: the `source`,
      `domain` and `seed` of networks that measure nothing, and why they are `lost`. `correlations` with the transfer
      loss, for each measure: `pearson` and `spearman` as `stats.correlation` gives them, also `within_strata` and
      `given_accuracy` (Spearman), or None where `undefined` says why; `missing`, at how many seeds the measure or the
      loss has no value; `left_out`, the sources without a value at any seed. Those of `PRIMARY` have their p-values
      `adjusted` and `adjusted_within_strata`, and whether the claim `holds`: True, False or None.
    """
    names = list(dict.fromkeys(table["source"]))
    numbers = [name for name in table.columns if name not in ("source", "domain", "seed", "lost")]
    of_source = lambda domain, i: {
        name: stats.plain(stats.mean_ci(by_source(table, name, domain)[i])) for name in numbers
    }
    domains = list(dict.fromkeys(table["domain"]))
    sources = [{"source": name, **{d: of_source(d, i) for d in domains}} for i, name in enumerate(names)]
    rows = [{"measure": name, **_correlations(table, name, names, rng)} for name in CAPTIONS]
    _adjust([row for row in rows if row["measure"] in PRIMARY])
    lost = table.loc[table["lost"] != "", ["source", "domain", "seed", "lost"]].to_dict("records")
    num_seeds = by_source(table, "transfer_loss").shape[1]
    return {"num_seeds": num_seeds, "sources": sources, "lost": lost, "correlations": rows}


def _correlations(table: pandas.DataFrame, name: str, names: Sequence[str], rng: np.random.Generator) -> dict[str, Any]:
    """How a measure goes with the transfer loss."""
    values, loss = compared(table, name), compared(table, "transfer_loss")
    values, loss = (np.where(np.isnan(values) | np.isnan(loss), np.nan, each) for each in (values, loss))
    mean, mean_loss = (stats.mean_ci(of_seeds, axis=1).mean for of_seeds in (values, loss))
    valid = np.isfinite(mean) & np.isfinite(mean_loss)
    row: dict[str, Any] = dict.fromkeys((*KINDS, "within_strata", "given_accuracy", "undefined"))
    row |= {"missing": int(np.isnan(values).sum()), "left_out": list(itertools.compress(names, ~valid))}
    if valid.sum() < 3:
        row["undefined"] = "fewer than 3 sources have values"
    elif stats.constant(mean[valid]):  # as the number of parameters of one architecture
        row["undefined"] = "the same for every source"
    elif stats.constant(mean_loss[valid]):
        row["undefined"] = "the transfer loss is the same for every source"
    else:
        strata, accuracy = by_source(table, "stratum")[:, 0], by_source(table, "source_accuracy")
        correlate = partial(_plain, values, loss, rng)
        row |= {"pearson": correlate(), "spearman": correlate(ranks=True)}
        if len(set(strata)) > 1 and name != "stratum":
            row["within_strata"] = correlate(ranks=True, strata=strata)
        if name != "source_accuracy" and not stats.constant(stats.mean_ci(accuracy, axis=1).mean[valid]):
            row["given_accuracy"] = correlate(ranks=True, given=accuracy)
    return row


def _plain(values: np.ndarray, loss: np.ndarray, rng: np.random.Generator, **options: Any) -> dict[str, float] | None:
    """A correlation ready for JSON; None where there is none, as if a covariate explains all."""
    statistic, p_value = stats.correlation(values, loss, rng, **options)
    return None if np.isnan(p_value) else {**stats.plain(statistic), "p_value": p_value}


def _adjust(rows: Sequence[dict[str, Any]]) -> None:
    """Add to the rows of the hypotheses what their p-values are together, and what follows."""
    for kind, name in (("spearman", "adjusted"), ("within_strata", "adjusted_within_strata")):
        p_values = [np.nan if row[kind] is None else row[kind]["p_value"] for row in rows]
        for row, p_value in zip(rows, stats.holm(np.array(p_values, float)), strict=True):
            row[name] = None if np.isnan(p_value) else float(p_value)
    for row in rows:
        significant = row["adjusted"] is not None and row["adjusted"] <= LEVEL
        row["holds"] = row["spearman"]["mean"] < 0 if significant else None


def tell(results: Results) -> str:
    """The sources, what goes with their transfer loss, and the success of attacks between all networks."""
    summary, config = results.summary, results.config
    kind, lines = figures.kind(summary), []
    for domain in [name for name in ("target", "contrast") if name in summary["sources"][0]]:
        images = summary["attacked"][domain]
        accuracies = ", ".join("lost" if a is None else f"{a:.2f}" for a in images["references"])
        lines.append(f"{domain}: {images['images']} {kind} attacked; accuracy of the references {accuracies}")
        rows = summary["sources"]
        of_sources = {name: [stats.interval_text(row[domain][name], 3) for row in rows] for name in TOLD}
        lines += [tables.text({"source": [row["source"] for row in rows], **of_sources}), ""]
    if summary["lost"]:
        listed = (f"{row['source']}, seed {row['seed']} ({row['lost']})" for row in summary["lost"])
        lines += [f"left out: {'; '.join(listed)}", ""]
    if known := summary.get("test_in_training"):  # absent from earlier summaries
        counted = ", ".join(f"{label} {count}" for label, count in known.items())
        lines += [f"test {kind} of the target that a source has trained on, by source: {counted}", ""]
    differences = "; measures and loss are differences, target less contrast" * ("contrast" in summary["sources"][0])
    lines.append(f"correlations with the transfer loss over {len(summary['sources'])} sources{differences}")
    lines += [tables.text(columns(summary["correlations"])), NOTE]
    if config["strata"]:
        lines.append(
            f"strata: {config['strata']}; within them, permutations exchange sources of the same stratum alone"
        )
    if "matrix" in results.tables:
        lines += ["", matrix.tell(results)]
    return "\n".join(lines)


def headline(results: Results) -> dict[str, stats.Interval]:
    """How tau1 of PGD goes with the transfer loss, both ways."""
    ways = {"pgd_liang_tau1_S_T": "source to target", "pgd_liang_tau1_T_S": "target to source"}
    rows = [row for row in results.summary["correlations"] if row["measure"] in ways]
    undefined = dict.fromkeys(stats.Interval._fields)
    return {
        f"rank correlation of tau1 and transfer loss, {ways[row['measure']]} (-1 to 1)": stats.from_plain(
            row["spearman"] or undefined
        )
        for row in rows
    }


def columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Every measure's correlation in words, for a table; of those without one why."""
    number = lambda row, kind, key: "" if row[kind] is None else p_text(row[kind][key])
    interval = lambda row, kind: "" if row[kind] is None else stats.interval_text(row[kind], 2)
    adjusted = lambda row, name: "" if row.get(name) is None else p_text(row[name])
    made: dict[str, list[str]] = {
        "measure": [CAPTIONS[row["measure"]] for row in rows],
        "Pearson": [interval(row, "pearson") for row in rows],
        "Spearman": [interval(row, "spearman") for row in rows],
        "p": [number(row, "spearman", "p_value") for row in rows],
        "p within strata": [number(row, "within_strata", "p_value") for row in rows],
        "given accuracy": [interval(row, "given_accuracy") for row in rows],
        "its p": [number(row, "given_accuracy", "p_value") for row in rows],
        "adjusted p": [adjusted(row, "adjusted") for row in rows],
        "adjusted, strata": [adjusted(row, "adjusted_within_strata") for row in rows],
        "claim": [VERDICTS[row["holds"]] if "holds" in row else "" for row in rows],
        "": [" ".join(filter(None, (row["undefined"], missing(row)))) for row in rows],
    }
    return {name: cells for name, cells in made.items() if any(cells)}


def p_text(p_value: float) -> str:
    """A p-value in words."""
    return "<0.001" if p_value < 0.0005 else f"{p_value:.3f}"


def missing(row: Mapping[str, Any]) -> str:
    """What a measure's correlation leaves out, in words; empty where it leaves out nothing."""
    left_out = f"; without {len(row['left_out'])}: {', '.join(row['left_out'])}" if row["left_out"] else ""
    return f"({row['missing']} values missing{left_out})" if row["missing"] else ""
