"""The page of the knowledge paper, from results as its runs leave them."""

import re
import runpy

import numpy as np
import pandas
import pytest
from conftest import ROOT

from jtrans import stats
from jtrans.experiments import knowledge, knowledge_paper, synthetic
from jtrans.experiments.knowledge import sources, words
from jtrans.harness import cli, experiment, folder
from jtrans.harness.experiment import Results

KNOWLEDGE = [run.name for run in knowledge_paper.RUNS if run.experiment == "knowledge"]


def finished(workdir, name):
    """A run of a shipped config that measured random numbers."""
    config = runpy.run_path(str(ROOT / "configs" / f"{name}.py"))["get_config"]()
    rng = np.random.default_rng(len(name))
    if name == "synthetic":
        scales = [0.0, 0.5, 0.9]
        index = [
            (seed, width, level, s) for seed in range(3) for width in (50, 100) for level in (0, 1) for s in scales
        ]
        table = pandas.DataFrame(index, columns=["seed", "width", "level", "scale"])
        table = table.assign(**{measure: rng.random(len(table)) for measure in synthetic.MEASURES})
        summary, tables = synthetic.summarize(table), {"synthetic": table}
    else:
        labels = sources.labels(knowledge.of_config(config))
        domains = ("target", "contrast")[: 1 + bool(config.contrast)]
        index = [(label, domain, seed) for label in labels for domain in domains for seed in range(2)]
        table = pandas.DataFrame(index, columns=["source", "domain", "seed"]).assign(lost="", stratum=0)
        measures = ("transfer_loss", "transfer_accuracy", "sgd_accuracy", *words.CAPTIONS)
        table = table.assign(**{measure: rng.random(len(table)) for measure in measures if measure != "stratum"})
        counts = {domain: {"images": 20, "references": [0.5]} for domain in domains}
        summary, tables = {"attacked": counts, **words.summarize(table, rng)}, {"knowledge": table}
    summary = folder.complete(
        {**summary, "seconds": 60.0, experiment.FILES: [f"{stem}.csv" for stem in tables]}, config
    )
    maker = knowledge if name in KNOWLEDGE else synthetic
    workdir.mkdir(parents=True)
    folder.write_config(workdir, maker.NAME, config)
    experiment.write_data(workdir, Results(config, summary, tables, {}))
    (workdir / "figure.png").write_bytes(b"")
    folder.write_summary(workdir, summary)


def test_the_page_has_every_hypothesis_with_its_verdict_and_the_published_numbers(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(knowledge_paper.reproduce, "make", lambda commands: None)
    for run in knowledge_paper.RUNS:
        finished(tmp_path / "runs" / run.name, run.name)
    flags = ["--config=knowledge_paper", f"--workdir={tmp_path / 'runs'}", f"--config.docs={tmp_path / 'docs'}"]
    assert cli.run(knowledge_paper.EXPERIMENT, ["knowledge_paper.py", *flags]) == 0
    text = (tmp_path / "docs" / "knowledge.md").read_text()
    said = capsys.readouterr().out
    for name in KNOWLEDGE:
        results = experiment.read(tmp_path / "runs" / name)
        rows = {row["measure"]: row for row in results.summary["correlations"]}
        for measure in words.PRIMARY:
            verdict = words.VERDICTS[rows[measure]["holds"]]
            assert f"{measure} {verdict}" in said
            cells = [words.CAPTIONS[measure], verdict]
            cells += [words.p_text(p) for p in (rows[measure]["spearman"]["p_value"], rows[measure]["adjusted"])]
            assert any({*cells} <= {*map(str.strip, line.split("|"))} for line in text.splitlines()), cells
    assert "| resnet18 | 0.766 | " in text
    assert "| 100 % | 0.54 | " in text
    assert "python -m jtrans knowledge --config=many_sources --config.source.dir=DIRECTORY" in text
    assert str(tmp_path) not in text
    # The published results alone give the same page.
    assert knowledge_paper.written(tmp_path / "docs" / "knowledge" / "results") == text


def test_every_number_of_the_committed_page_is_from_the_committed_results():
    docs = ROOT / "docs"
    if not (docs / knowledge_paper.PAGE).exists():
        pytest.skip("the page is not written yet")
    assert knowledge_paper.written(docs / knowledge_paper.RESULTS) == (docs / knowledge_paper.PAGE).read_text()


SUCCESS = "pgd_liang_success_S_T"
SHOWN = (*words.PRIMARY, SUCCESS, "h_score", "cka", "logme", "leep", "gbc")  # in docs/transfer.md


def rows_shown(results):
    """The table of the powered run in docs/transfer.md."""
    rows = {row["measure"]: row for row in results.summary["correlations"]}
    for name in SHOWN:
        row = rows[name]
        strata = row.get("adjusted_within_strata", row["within_strata"]["p_value"])
        cells = [stats.interval_text(row["spearman"], 2)]
        cells += map(words.p_text, (row.get("adjusted", row["spearman"]["p_value"]), strata))
        cells.append(words.VERDICTS[row["holds"]] if "holds" in row else "")
        yield f"| {' | '.join([words.CAPTIONS[name], *cells])} |".replace("  ", " ")


def test_the_docs_say_what_the_committed_results_say():
    published, page = ROOT / "docs" / "knowledge" / "results", (ROOT / "docs" / "transfer.md").read_text()
    section = page.partition("## Do attacks transfer where knowledge does?")[2].partition("\n## ")[0]
    results = {name: experiment.read(published / name) for name in ("many_sources", "noisy_sources")}
    for row in rows_shown(results["many_sources"]):
        assert row in section
    for name in ("many_sources", "noisy_sources"):
        assert knowledge_paper.conclusion(results[name]) in section.replace("\n", " ")
    of = {name: {row["measure"]: row for row in results[name].summary["correlations"]} for name in results}
    many, noisy = of["many_sources"], of["noisy_sources"]
    assert all(many[name]["adjusted_within_strata"] > words.LEVEL for name in words.PRIMARY)
    readme = " ".join((ROOT / "README.md").read_text().split())
    holding = sorted((many[name]["spearman"] for name in words.PRIMARY if many[name]["holds"]), key=lambda r: r["mean"])
    first, second, third = (stats.interval_text(each, 2) for each in holding)
    assert "three of four hypotheses hold" in readme
    assert f"rank correlations of {first}, {second} and {third}" in readme
    assert all(many[name]["within_strata"]["p_value"] <= words.LEVEL for name in ("h_score", "cka", SUCCESS))
    assert all(noisy[name]["given_accuracy"]["p_value"] > words.LEVEL for name in words.PRIMARY)
    assert stats.interval_text(many["stratum"]["spearman"], 2) in section
    (minutes,) = re.findall(r"\(`many_sources.py`, (\d+) minutes on two cores\)", section)
    assert float(minutes) == pytest.approx(results["many_sources"].summary["seconds"] / 60, abs=0.5)
