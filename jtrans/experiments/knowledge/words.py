"""How adversarial transferability goes with the transfer of knowledge, in numbers and in words."""

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas

from jtrans import stats
from jtrans.experiments import matrix
from jtrans.harness import tables
from jtrans.harness.experiment import Results

# The measures that are correlated with the transfer loss.
CAPTIONS = {
    **{
        f"{attack}_{measure}_{way}": f"{text}, {attack_text}, {way_text}"
        for attack, attack_text in (("virtual", "virtual attack"), ("fgsm_liang", "FGSM"), ("pgd_liang", "PGD"))
        for way, way_text in (("S_T", "source to target"), ("T_S", "target to source"))
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
PGD = ("pgd_liang_tau1_S_T", "pgd_liang_tau2_S_T", "pgd_liang_success")
TOLD = ("transfer_loss", "transfer_accuracy", "sgd_accuracy", *PGD)
KINDS, INTERVALS = ("pearson", "spearman"), ("Pearson [95 %]", "Spearman [95 %]")
COLUMNS = ("correlation with the transfer loss", *INTERVALS, "p (both)", "smaller loss, larger?", "")
VERDICTS = {True: "holds", False: "does not hold", None: "open"}
NOTE = """\
intervals: bootstrap over sources and seeds; p: exact permutation test over sources, two-sided
the claim of Liang et al. (2021): taus and success are larger where the transfer loss is smaller.
It holds for a measure where Spearman's whole interval lies below 0, and not where it lies above"""


def by_source(table: pandas.DataFrame, name: str) -> np.ndarray:
    """A column of the table, `[sources, seeds]`, the sources in the table's order."""
    return np.stack([values.to_numpy() for _, values in table.groupby("source", sort=False)[name]])


def summarize(table: pandas.DataFrame, rng: np.random.Generator) -> dict[str, Any]:
    """How every measure of `CAPTIONS` goes with knowledge transfer over the sources, ready for JSON.

    Returns:
      `sources`: for each, every column of numbers as `{mean, low, high}` over seeds. `lost`: the `source` and `seed` of
      networks that measure nothing, and why they are `lost`. `correlations` with the transfer loss, for each measure:
      `pearson` and `spearman` as `stats.correlation` gives them, or None where `undefined` says why; `missing`, at how
      many seeds the measure or the loss has no value; `left_out`, the sources without a value at any seed; whether it
      `falls` with the loss: True where Spearman's whole interval lies below 0, False where it lies above, else None.
    """
    values = {name: by_source(table, name) for name in table.columns if name not in ("source", "seed", "lost")}
    loss, names = values["transfer_loss"], list(dict.fromkeys(table["source"]))
    of_source = lambda i: {name: stats.plain(stats.mean_ci(of[i])) for name, of in values.items()}
    sources = [{"source": source, **of_source(i)} for i, source in enumerate(names)]
    correlations = [{"measure": name, **_correlations(values[name], loss, names, rng)} for name in CAPTIONS]
    lost = table.loc[table["lost"] != "", ["source", "seed", "lost"]].to_dict("records")
    return {"num_seeds": loss.shape[1], "sources": sources, "lost": lost, "correlations": correlations}


def _correlations(values: np.ndarray, loss: np.ndarray, names: list[str], rng: np.random.Generator) -> dict[str, Any]:
    """How a measure goes with the transfer loss, both `[sources, seeds]`."""
    values, loss = (np.where(np.isnan(values) | np.isnan(loss), np.nan, each) for each in (values, loss))
    mean, mean_loss = (stats.mean_ci(of_seeds, axis=1).mean for of_seeds in (values, loss))
    valid = np.isfinite(mean) & np.isfinite(mean_loss)
    row: dict[str, Any] = dict.fromkeys((*KINDS, "undefined", "falls"))
    row |= {"missing": int(np.isnan(values).sum()), "left_out": list(itertools.compress(names, ~valid))}
    if valid.sum() < 3:
        row["undefined"] = "fewer than 3 sources have values"
    elif stats.constant(mean[valid]):  # as the number of parameters of one architecture
        row["undefined"] = "the same for every source"
    elif stats.constant(mean_loss[valid]):
        row["undefined"] = "the transfer loss is the same for every source"
    else:
        for kind in KINDS:
            statistic, p_value = stats.correlation(values, loss, rng, ranks=kind == "spearman")
            row[kind] = {**stats.plain(statistic), "p_value": p_value}
        low, high = row["spearman"]["low"], row["spearman"]["high"]
        row["falls"] = high < 0 if high < 0 or low > 0 else None
    return row


def tell(results: Results) -> str:
    """The sources, what goes with their transfer loss, and the success of attacks between all networks."""
    summary, rows = results.summary, results.summary["sources"]
    of_sources = {name: [stats.interval_text(row[name], 3) for row in rows] for name in TOLD}
    lines = [tables.text({"source": [row["source"] for row in rows], **of_sources})]
    if summary["lost"]:
        listed = (f"{row['source']}, seed {row['seed']} ({row['lost']})" for row in summary["lost"])
        lines.append(f"left out: {'; '.join(listed)}")
    cells = zip(*map(_cells, summary["correlations"]), strict=True)
    lines += ["", tables.text(dict(zip(COLUMNS, cells, strict=True))), NOTE]
    return "\n".join([*lines, "", matrix.tell(results)])


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    """A measure's correlation, in words for each of `COLUMNS`."""
    if row["undefined"] is not None:
        return CAPTIONS[row["measure"]], "", "", "", row["undefined"], missing(row)
    intervals = (stats.interval_text(row[kind], 2) for kind in KINDS)
    p_values = ", ".join(f"{row[kind]['p_value']:.3f}" for kind in KINDS)
    return CAPTIONS[row["measure"]], *intervals, p_values, VERDICTS[row["falls"]], missing(row)


def missing(row: Mapping[str, Any]) -> str:
    """What a measure's correlation leaves out, in words; empty where it leaves out nothing."""
    left_out = f"; without {len(row['left_out'])}: {', '.join(row['left_out'])}" if row["left_out"] else ""
    return f"({row['missing']} values missing{left_out})" if row["missing"] else ""
