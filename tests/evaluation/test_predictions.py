"""Scoring of prediction files: formats, quirks, errors, and a hand-worked result."""

import gzip
import json
import re
import subprocess
import sys

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sprec_ray.reports.scores_file import write_scores

IT = 'A Child Called "It"'
TITLES = ["Dune", "Emma", IT, "WALL·E (2008)"]
GENRES = {"Dune": ["sf"], "Emma": ["romance", "other"], IT: ["memoir"], "WALL·E (2008)": ["sf", "romance"]}
ROWS = [
    {"instruction": "", "input": 'read: "Emma", "Dune", please', "output": '"Dune"\n', "predict": ['"Dune"\n']},
    {"input": f'read: "{IT}", "WALLÂ·E (2008)"', "output": f'"{IT}"', "predict": [f'"{IT}"', "second"]},
    {"input": 'read: "Emma"', "output": '"WALLÂ·E (2008)"', "predict": ['"WALLÂ·E (2008)']},
    {"input": "read: nothing", "output": '"Lost"', "predict": []},
]
GROUNDED = [["Dune", "Emma"], ["Dune", IT], ["Emma"], ["Lost", "Dune"]]


@pytest.fixture
def files(tmp_path):
    """A catalogue folder and a prediction file; call it to write further files."""

    def write(name, value):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
        return path

    write("eval/id2name.json", {str(index): title for index, title in enumerate(TITLES)})
    write("eval/name2genre.json.gz", GENRES)
    write("eval/genre_dict.json", {"sf": 0, "romance": 0})
    write("predictions.json", ROWS)
    write("grounded.json", GROUNDED)
    return write


def run(folder, **options):
    defaults = {"predictions": folder / "predictions.json", "catalog": folder / "eval", "out": folder / "metrics.json"}
    text = write_scores([f"{key}={value}" for key, value in (defaults | options).items() if value is not None])
    return json.loads((folder / "metrics.json").read_text()), text


def test_ready_lists_by_hand(files, tmp_path):
    """n = 4, k = 2: row 0 hits at rank 0, row 1 at rank 1, rows 2 and 3 (unknown target) miss.

    Places: Dune 3, Emma 2, It 1, Lost 1 of 8; 4 distinct; top three 6.
    k = 1: Dune, Dune, Emma, Lost: sf 2, romance 1: GP = (2/3, 1/3). History Emma, Dune, It, WALL·E, Emma: sf 1.5,
    romance 2.5: GH = (3/8, 5/8). Gaps +7/24, -7/24.
    Published, k = 1: rows 0-2: Dune, Dune, Emma: 2 distinct of 3.
    """
    found, text = run(tmp_path, grounded=tmp_path / "grounded.json", k="1,2")
    assert found["hr@1"] == 0.25
    assert found["hr@2"] == 0.5
    assert found["ndcg@2"] == pytest.approx((1 + 0.6309297535714575) / 4)
    assert found["div_ratio@2"] == 4 / 8
    assert found["or_ratio@2"] == 6 / 8
    assert found["mgu@1"] == pytest.approx(7 / 24)
    assert found["dgu@1"] == pytest.approx(14 / 24)
    assert found["genre_gaps"] == {"sf": pytest.approx(7 / 24), "romance": pytest.approx(-7 / 24)}
    assert found["published"]["div_ratio@1"] == pytest.approx(2 / 3)
    assert "hr@1" not in found["published"]
    assert found["valid"] == 2 / 4
    assert found["most_recommended"]["@1"][0] == {"title": "Dune", "count": 2}
    assert found["most_recommended"]["@2"][:2] == [{"title": "Dune", "count": 3}, {"title": "Emma", "count": 2}]
    assert found["counts"] == {
        "num_rows": 4,
        "num_parse_failures": 2,
        "num_in_catalog": 3,
        "num_valid": 2,
        "num_distinct_valid": 2,
        "num_short_lists": 1,
        "num_lists_with_repeats": 0,
        "num_grounded_unknown": 1,
        "num_unknown_targets": 1,
        "num_history_items": 5,
        "num_unknown_history_items": 0,
        "num_hits@1": 1,
        "num_distinct@1": 3,
        "num_hits@2": 2,
        "num_distinct@2": 4,
        "num_empty_predictions": 1,
        "num_rows_with_several_predictions": 1,
        "num_repaired_titles": 3,
        "num_catalog_titles": 4,
    }
    assert "HR@2" in text


def test_a_generated_title_read_as_latin_1_is_repaired(files, tmp_path):
    files("predictions.json", [ROWS[2] | {"predict": '"WALLÂ·E (2008)"'}])
    found, _ = run(tmp_path, k=1)
    assert found["hr@1"] == 1
    assert found["valid"] == 1


def test_json_lines_and_gzip_give_the_same(files, tmp_path):
    expected, _ = run(tmp_path, grounded=tmp_path / "grounded.json")
    lines = "\n".join(json.dumps(row) for row in ROWS)
    packed = files("predictions.jsonl.gz", lines)
    found, _ = run(tmp_path, predictions=packed, grounded=files("grounded.json.gz", GROUNDED))
    assert found == expected


def test_exact_titles_need_no_model_at_k_1(files, tmp_path):
    files("predictions.json", ROWS[:2])
    found, _ = run(tmp_path, k=1)
    assert found["hr@1"] == 1
    with pytest.raises(ValueError, match=re.escape("0 of 2 generated titles are not in the catalogue and k=2")):
        run(tmp_path, k="1,2")


def test_without_grounding_both_remedies_are_named(files, tmp_path):
    with pytest.raises(ValueError, match=r"embedding=MODEL_OR_PATH, or grounded=FILE"):
        run(tmp_path, k=1)


@pytest.mark.parametrize("missing", ["name2genre.json.gz", "genre_dict.json"])
def test_missing_genres_leave_fairness_undefined_and_say_so(files, tmp_path, missing):
    (tmp_path / "eval" / missing).unlink()
    found, text = run(tmp_path, grounded=tmp_path / "grounded.json", k=1)
    assert found["mgu@1"] is None
    assert missing.removesuffix(".gz") in found["notes"][0]
    assert found["notes"][0] in text


def test_undefined_is_null(files, tmp_path):
    files("eval/genre_dict.json", {"western": 0})
    files("eval/popularity.json", {"Dune": 3})
    found, _ = run(tmp_path, grounded=tmp_path / "grounded.json", k=1)
    assert found["mgu@1"] is None
    assert found["genre_gaps"] == {"western": None}
    assert found["notes"] == []


def test_training_events_make_popularity_defined(files, tmp_path):
    """Places Dune 3, Emma 2, It 1, Lost 1; rows of catalogue titles: (Dune, Emma), (Dune, It), (Emma), (Dune).

    All events are Dune's, so it is the head: rows' shares 1/2, 1/2, 0, 1, and twice their events for ARP.
    """
    found, text = run(tmp_path, grounded=tmp_path / "grounded.json", k=2)
    assert found["head_share@2"] is None
    assert "popularity.json" in text
    files("eval/popularity.json", {"Dune": 4})
    found, _ = run(tmp_path, grounded=tmp_path / "grounded.json", k=2)
    assert found["head_share@2"] == pytest.approx(1 / 2)
    assert found["tail_share@2"] == pytest.approx(1 / 2)
    assert found["arp@2"] == pytest.approx(2)
    files("eval/popularity.json", {"Dune": -1})
    with pytest.raises(ValueError, match="'Dune' must have a whole number of training events"):
        run(tmp_path, grounded=tmp_path / "grounded.json", k=2)


def test_a_causal_language_model_folder_grounds(files, tmp_path):
    words = {word: index for index, word in enumerate(["[UNK]", *sorted({w for t in TITLES for w in t.split()})])}
    tokenizer = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    model_folder = tmp_path / "model"
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", eos_token="[UNK]").save_pretrained(
        model_folder
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    LlamaForCausalLM(config).save_pretrained(model_folder)
    found, _ = run(tmp_path, embedding=model_folder, k="1,3")
    assert found["hr@1"] == 3 / 4  # the three known targets were generated exactly
    assert found["counts"]["num_distinct@1"] in (3, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"predictions": None}, "predictions= is missing; usage"),
        ({"nonsense": 1}, "'nonsense=1' is not an argument; usage"),
        ({"predictions": "nowhere.json"}, "predictions=nowhere.json does not exist"),
        ({"catalog": "nowhere"}, "catalog=nowhere is not a folder"),
        ({"grounded": "nowhere.json"}, "grounded=nowhere.json does not exist"),
        ({"k": "0"}, "k=0 must be whole numbers from 1"),
        ({"k": "five"}, "k=five must be"),
        ({"k": "9", "embedding": "x"}, "k=9 exceeds the catalogue's 4 titles"),
        ({"grounded": "a", "embedding": "b"}, "grounded= replaces grounding"),
    ],
)
def test_what_the_user_can_mend_is_one_line(files, tmp_path, options, message):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        run(tmp_path, **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "metrics.json").exists()


def test_odd_files_are_named(files, tmp_path):
    grounded = tmp_path / "grounded.json"
    files("grounded.json", GROUNDED[:3])
    with pytest.raises(ValueError, match=r"has 3 rows and the predictions have 4"):
        run(tmp_path, grounded=grounded)
    files("grounded.json", [["Dune"], "Dune", [], []])
    with pytest.raises(ValueError, match=r"row 2: expected a list of titles"):
        run(tmp_path, grounded=grounded)
    files("predictions.json", [ROWS[0] | {"predict": None}])
    with pytest.raises(ValueError, match=r"row 1: 'predict' must be a list of texts"):
        run(tmp_path)
    files("predictions.json", [ROWS[0] | {"candidates": ["Dune", "Emma"]}])
    with pytest.raises(ValueError, match=r"row 1: the prompt lists candidates"):
        run(tmp_path)
    files("predictions.json", ROWS)
    with pytest.raises(ValueError, match=r"holds no config\.json"):
        run(tmp_path, embedding=tmp_path / "eval", k=1)
    with pytest.raises(ValueError, match="is a folder; name a file"):
        run(tmp_path, out=tmp_path)
    (tmp_path / "eval" / "id2name.json").unlink()
    with pytest.raises(ValueError, match=r"holds no id2name\.json"):
        run(tmp_path)


def test_scoring_ready_lists_imports_no_torch():
    code = "import sys, sprec_ray.evaluation.predictions, sprec_ray.reports.run.page; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
