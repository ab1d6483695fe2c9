"""The figures of a data set against scipy, numpy, hand counts and rows whose answer is known."""

import itertools
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import kendalltau, spearmanr

from castor.config.data import DataSource
from castor.data.inspect.harm_counts import taxonomy_of
from castor.data.inspect.preference_agreement import response_scores
from castor.data.inspect.statistics import DataStatistics, measure
from castor.io.errors import CastorError
from castor.io.files import write_jsonl
from castor.statistics.prompt_counts import Cells, phi
from castor.taxonomy import BEAVERTAILS_CATEGORIES, PKU_CATEGORIES

REAL = Path(__file__).parents[4].parent / "shared" / "data"


def measured(folder: Path, rows: list[dict[str, Any]]) -> DataStatistics:
    write_jsonl(folder / "rows.jsonl", rows)
    return measure(DataSource(source=str(folder / "rows.jsonl")))


def pair(prompt: str, better: int, safer: int, first: str = "one two", second: str = "one", **labels: Any) -> dict:
    texts = {"prompt": prompt, "response_0": first, "response_1": second}
    return {**texts, "better_response_id": better, "safer_response_id": safer, **labels}


def test_phi_is_the_correlation_and_the_tau_b_of_two_binary_labels() -> None:
    rng = np.random.default_rng(0)
    first = rng.random(200) < 0.3
    second = np.where(rng.random(200) < 0.4, first, rng.random(200) < 0.6)
    table = [np.array(float((a & b).sum())) for a in (first, ~first) for b in (second, ~second)]
    assert phi(*table) == pytest.approx(np.corrcoef(first, second)[0, 1], abs=1e-12)
    assert phi(*table) == pytest.approx(kendalltau(first, second).statistic, abs=1e-12)
    assert np.isnan(phi(*(np.array(count) for count in (3.0, 2.0, 0.0, 0.0))))


def test_agreement_tau_and_phi_by_hand(tmp_path: Path) -> None:
    choices = [(0, 0)] * 4 + [(1, 1)] * 3 + [(0, 1)] * 2 + [(1, 0)]
    overall = measured(tmp_path, [pair(f"prompt {i}", *choice) for i, choice in enumerate(choices)]).relations[0]
    assert overall.group == "all pairs"
    assert overall.pairs == 10
    assert overall.agreement is not None
    assert overall.tau is not None
    assert overall.phi is not None
    assert overall.agreement.value == pytest.approx(0.7)
    assert overall.tau.value == pytest.approx(0.4)
    assert overall.phi.value == pytest.approx((4 * 3 - 2 * 1) / np.sqrt(6 * 4 * 5 * 5))
    assert overall.tau.low == pytest.approx(2 * overall.agreement.low - 1)
    assert (overall.agreement.n, overall.agreement.prompts) == (10, 10)
    assert (overall.ranked_prompts, overall.kendall) == (0, None)


def test_the_interval_resamples_prompts_and_not_rows(tmp_path: Path) -> None:
    rng = random.Random(0)
    choices = [(0, rng.randrange(2)) for _ in range(60)]
    once = measured(tmp_path, [pair(f"prompt {i}", *c) for i, c in enumerate(choices)]).relations[0].agreement
    often = [pair(f"prompt {i}", *c, first=f"text {k}") for i, c in enumerate(choices) for k in range(9)]
    many = measured(tmp_path, often).relations[0].agreement
    assert once is not None
    assert many is not None
    assert many.n == 9 * once.n
    # Nine copies of every prompt's verdict say no more than one does.
    assert (many.value, many.low, many.high) == pytest.approx((once.value, once.low, once.high))
    share, half = once.value, (once.high - once.low) / 2
    assert half == pytest.approx(1.96 * np.sqrt(share * (1 - share) / 60), rel=0.15)


def test_groups_by_category_and_by_safety_pattern(tmp_path: Path) -> None:
    def flags(first: bool, second: bool) -> dict[str, bool]:
        return {"is_response_0_safe": first, "is_response_1_safe": second}

    violence = {"response_0_harm_category": {"Violence": True}, "response_1_harm_category": {"Drugs": True}}
    rows = [pair(f"prompt {i}", 0, 0, **flags(False, False), **violence) for i in range(3)]
    rows += [pair(f"prompt {i}", 0, 1, **flags(False, True)) for i in range(10, 14)]
    found = {relation.group: relation for relation in measured(tmp_path, rows).relations}
    assert list(found) == ["all pairs", "one safe, one unsafe", "both responses unsafe", "Drugs", "Violence"]
    assert [relation.pairs for relation in found.values()] == [7, 4, 3, 3, 3]
    agreement = found["Violence"].agreement
    assert agreement is not None
    assert agreement.value == 1.0
    assert agreement.low < 1.0  # a share that never varies has Wilson's interval
    assert found["Violence"].phi is None  # one label is the same everywhere


def test_rank_correlation_within_a_prompt_is_scipys(tmp_path: Path) -> None:
    rng, rows, taus, rhos = random.Random(1), [], [], []
    for number in range(12):
        helpful, harmless = rng.sample(range(4), 4), rng.sample(range(4), 4)
        for a, b in itertools.combinations(range(4), 2):  # every pair compared: the scores are in the ranks' order
            choice = int(helpful[b] > helpful[a]), int(harmless[b] > harmless[a])
            rows.append(pair(f"prompt {number}", *choice, first=f"text {a}", second=f"text {b}"))
        taus.append(kendalltau(helpful, harmless).statistic)
        rhos.append(spearmanr(helpful, harmless).statistic)
    overall = measured(tmp_path, rows).relations[0]
    assert overall.ranked_prompts == 12
    assert overall.kendall is not None
    assert overall.spearman is not None
    assert overall.kendall.value == pytest.approx(np.mean(taus))
    assert overall.spearman.value == pytest.approx(np.mean(rhos))
    assert overall.kendall.n == overall.kendall.prompts == 12


def test_response_scores_by_hand() -> None:
    helpfulness, harmlessness = response_scores([(b"a", b"b", 0, 1), (b"a", b"c", 0, 0), (b"c", b"b", 1, 1)])
    assert helpfulness.tolist() == [1.0, 0.0, -1.0]
    assert harmlessness.tolist() == [0.0, 1.0, -1.0]


def test_length_bias_by_hand(tmp_path: Path) -> None:
    rows = [
        pair("p 0", 0, 1, "a b c", "a"),  # longer is better, shorter is safer
        pair("p 1", 0, 0, "a b c", "a"),
        pair("p 2", 1, 1, "a b c", "a"),
        pair("p 3", 1, 0, "a b", "c d"),  # equally long
    ]
    found = measured(tmp_path, rows)
    better, safer = found.lengths.bias["better_response_id"], found.lengths.bias["safer_response_id"]
    assert (better.pairs, better.equal) == (4, 1)
    assert better.preferred_longer is not None
    assert better.extra_words is not None
    assert safer.preferred_longer is not None
    assert better.preferred_longer.value == pytest.approx(2 / 3)
    assert safer.preferred_longer.value == pytest.approx(1 / 3)
    assert better.extra_words.value == pytest.approx((2 + 2 - 2 + 0) / 4)
    first = found.first_preferred["better_response_id"]
    assert first is not None
    assert first.value == 0.5
    assert found.lengths.groups["all"].n == 8
    assert sum(found.lengths.groups["all"].histogram) == 8


def test_categories_and_severities_by_hand(tmp_path: Path) -> None:
    def answer(number: int, names: tuple[str, ...], severity: int) -> dict[str, Any]:
        labels = {"is_safe": not names, "harm_category": {name: name in names for name in PKU_CATEGORIES}}
        return {"prompt": f"prompt {number}", "response": "text", **labels, "severity_level": severity}

    given = [((), 0), (("Violence", "Drugs"), 3), (("Violence",), 1), (("Drugs", "Violence"), 2), (("Cybercrime",), 1)]
    harm = measured(tmp_path, [answer(number, *labels) for number, labels in enumerate(given)]).harm
    assert (harm.safe, harm.unsafe, harm.labelled) == (1, 4, 5)
    assert harm.severities == [1, 2, 1, 1]
    assert harm.categories_each == {1: 2, 2: 2}
    names = [category.name for category in harm.categories]
    assert tuple(names) == PKU_CATEGORIES
    violence, drugs = names.index("Violence"), names.index("Drugs")
    assert (harm.together[violence][violence], harm.together[violence][drugs]) == (3, 2)
    columns = np.array([[name in labels for name in ("Violence", "Drugs")] for labels, _ in given], dtype=float)
    assert harm.correlation[violence][drugs] == pytest.approx(np.corrcoef(columns.T)[0, 1])
    assert harm.correlation[violence][names.index("Animal Abuse")] is None
    assert harm.categories[violence].severities == [0, 1, 1, 1]
    of_harmful = harm.categories[violence].of_harmful
    assert of_harmful is not None
    assert (of_harmful.value, of_harmful.n) == (0.75, 4)


def test_the_taxonomy_in_use() -> None:
    assert taxonomy_of(frozenset({"Violence"})) == PKU_CATEGORIES
    assert taxonomy_of(frozenset({"self_harm"})) == BEAVERTAILS_CATEGORIES
    assert len(taxonomy_of(frozenset({"self_harm", "Violence"}))) == 33
    assert taxonomy_of(frozenset()) == ()


def test_a_figure_of_one_prompt_has_no_interval_and_so_no_value() -> None:
    cells = Cells()
    cells.add(b"only", "pairs", 5)
    cells.add(b"only", "hits", 2)
    cells.add(b"other", "unrelated")
    draws = cells.draw(0)
    assert draws.share("hits", "pairs") is None
    assert draws.share("hits", "never counted") is None
    assert (draws.total("hits"), draws.total("never counted")) == (2.0, 0.0)


def test_sets_of_every_kind_are_measured_and_say_none_where_nothing_can_be(tmp_path: Path) -> None:
    prompts = measured(tmp_path, [{"prompt": "How?", "category": "self_harm"}, {"prompt": "Why?"}])
    assert prompts.kinds == {"prompt": 2}
    assert prompts.prompt_categories == {"self_harm": 1}
    demonstrations = measured(tmp_path, [{"prompt": "How?", "response": "So."}])
    assert demonstrations.harm.responses == 1
    for found in (prompts, demonstrations):
        assert (found.relations, found.lengths.bias, found.first_preferred) == ([], {}, {})
        assert (found.harm.safe_share, found.harm.categories) == (None, [])
    with pytest.raises(CastorError, match="no rows"):
        measured(tmp_path, [])


def test_the_synthetic_corpus_has_both_preferences_and_a_severity_ladder() -> None:
    found = measure(DataSource(limit=400))
    tau = found.relations[0].tau
    assert tau is not None
    assert tau.low < tau.value < tau.high
    assert sum(found.harm.severities) == 800
    again = measure(DataSource(limit=400))
    assert again == found  # the bootstrap is seeded
    assert DataStatistics.model_validate_json(found.model_dump_json()) == found


@pytest.mark.skipif(not REAL.is_dir(), reason="the real rows are not here")
def test_real_rows_have_the_imbalance_the_authors_report() -> None:
    found = measure(DataSource(source=str(REAL / "beavertails" / "beavertails-30k-test-part.jsonl.gz")))
    assert (found.kept, found.harm.safe, found.harm.unsafe) == (2057, 869, 1188)
    assert found.harm.safe_share is not None
    assert found.harm.safe_share.low < 0.4268 < found.harm.safe_share.high  # 30k as a whole
    names = [category.name for category in found.harm.categories]
    first, second = names.index("discrimination,stereotype,injustice"), names.index("hate_speech,offensive_language")
    correlation = found.harm.correlation[first][second]
    assert correlation is not None
    assert correlation == pytest.approx(0.41, abs=0.1)
