"""`metagen score`: the numbers of transformers on the rendered prompt, lines in order, one clear line per mistake."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from metagen_ray.cli import main
from metagen_ray.store import content_key, open_store

EXAMPLES = [{"question": "Should I lend money?", "answer": "No."}, {"question": "And to a friend?", "answer": "Yes."}]
LINES = [
    {"examples": EXAMPLES, "question": "What now?", "answers": ["Run.", "Stay here and wait.", ""]},
    {"question": "What now?", "answers": ["Run."]},
    {"prefix": "one two three", "question": " four", "answers": [" five", " six seven"]},
    {"examples": EXAMPLES, "question": "Who are you?\u2028Say.", "answers": ["Nobody."]},
    {"prefix": "one", "answers": [" two"]},
    {"examples": [], "question": "What now?", "answers": ["Run."]},
]


@pytest.fixture(scope="module")
def adapter_dir(base_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base_dir), LoraConfig(r=4, target_modules=["q_proj"]))
    torch.manual_seed(3)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            weight.data.normal_(0.0, 0.5)
    model.save_pretrained(folder)
    return folder


def write(folder: Path, *lines: object) -> Path:
    path = folder / "asked.jsonl"
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return path


def expected(base_dir: Path, adapter: Path | None = None) -> list[list[list[float]]]:
    """Log-probabilities of every token of every answer, row by row, prompts by transformers' own template."""
    tokenizer, model = AutoTokenizer.from_pretrained(base_dir), AutoModelForCausalLM.from_pretrained(base_dir)
    if adapter:
        model = PeftModel.from_pretrained(model, str(adapter))
    model.eval()

    def tokens(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False)

    def row(line: dict, answer: str) -> list[float]:
        if "prefix" in line:
            context, ids = tokens(line["prefix"]) + tokens(line.get("question", "")), tokens(answer)
        else:
            said = [
                (r, e[k]) for e in line.get("examples", []) for r, k in (("user", "question"), ("assistant", "answer"))
            ]
            chat = [{"role": r, "content": c} for r, c in [*said, ("user", line["question"])]]
            context = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
            ids = [*tokens(answer), tokenizer.eos_token_id]
        with torch.inference_mode():
            at = F.log_softmax(model(torch.tensor([[*context, *ids]])).logits[0].double(), -1)
        return [at[len(context) - 1 + n, i].item() for n, i in enumerate(ids)]

    return [[row(line, answer) for answer in line["answers"]] for line in LINES]


def check(printed: str, wanted: list[list[list[float]]]) -> None:
    lines = [json.loads(line) for line in printed.splitlines()]
    assert len(lines) == len(wanted)
    for line, rows in zip(lines, wanted, strict=True):
        assert line["tokens"] == [len(row) for row in rows]
        assert line["log_likelihoods"] == pytest.approx([sum(row) for row in rows], abs=1e-4)
        assert line["per_token"] == pytest.approx([sum(row) / len(row) for row in rows], abs=1e-4)


def test_score_prints_what_transformers_gives_line_by_line(base_dir, tmp_path, capsys):
    assert main(["score", str(base_dir), str(write(tmp_path, *LINES))]) == 0
    check(capsys.readouterr().out, expected(base_dir))


def test_score_with_a_peft_directory_and_with_a_key_of_the_store(base_dir, adapter_dir, tmp_path, capsys):
    files = {p.name: p.read_bytes() for p in adapter_dir.iterdir() if p.name.startswith("adapter_")}
    key = content_key({"adapter": 1})
    open_store(str(tmp_path / "store")).put_files("object_sft", key, files, {})
    asked, out = write(tmp_path, *LINES), tmp_path / "out.jsonl"
    wanted = expected(base_dir, adapter_dir)
    assert main(["score", str(base_dir), str(asked), "--adapter", str(adapter_dir), "--out", str(out)]) == 0
    assert capsys.readouterr().out == ""
    check(out.read_text(), wanted)
    assert main(["score", str(base_dir), str(asked), "--adapter", key, "--store", str(tmp_path / "store")]) == 0
    check(capsys.readouterr().out, wanted)


GOOD = {"question": "What?", "answers": ["This."]}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "no JSON text"),
        ("", "no JSON text"),
        ("[1]", "a list where an object is wanted"),
        (json.dumps({**GOOD, "exampels": []}), "unknown field 'exampels'"),
        (json.dumps({**GOOD, "examples": [{"question": "a"}]}), "examples must be"),
        (json.dumps({**GOOD, "examples": [], "prefix": ""}), "not both"),
        (json.dumps({"question": 3, "answers": ["a"]}), "question must be a text"),
        (json.dumps({"answers": ["a"]}), "question must be a text"),
        (json.dumps({"question": "a", "answers": []}), "one at least"),
        (json.dumps({"question": "a", "answers": ["a", 1]}), "list of texts"),
        (json.dumps({"prefix": "", "answers": ["a"]}), "nothing to predict"),
        (json.dumps({"prefix": "a", "answers": [""]}), "nothing to predict"),
        (json.dumps({"question": "\ud800", "answers": ["a"]}), "no JSON text"),
        (json.dumps({"question": "word " * 3000, "answers": ["a"]}), "the model takes"),
        ("[" * 100_000, "no JSON text"),
    ],
)
def test_score_bad_line_is_named_and_nothing_is_computed(base_dir, tmp_path, capsys, line, words):
    path = tmp_path / "asked.jsonl"
    path.write_text(f"{json.dumps(GOOD)}\n{line}\n{json.dumps(GOOD)}\n")
    assert main(["score", str(base_dir), str(path)]) == 2
    told = capsys.readouterr()
    assert f"{path}, line 2: " in told.err and words in told.err and told.err.count("\n") == 1 and not told.out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["no-such-model", "FILE"], 2, "no such directory"),
        (["BASE", "no-such-file.jsonl"], 2, "cannot be read"),
        (["BASE", "FILE", "--adapter", "nowhere"], 2, "no such directory, and no key"),
        (["BASE", "FILE", "--adapter", "0" * 64, "--store", "STORE"], 2, "no such adapter in"),
        (["BASE", "FILE", "--adapter", "FOLDER"], 2, "no adapter_model.safetensors"),
        (["BASE", "FILE", "--out", "no/such/folder/out.jsonl"], 2, "no such folder"),
        (["BASE", "FILE", "--out", "FOLDER"], 2, "cannot be written"),
    ],
)
def test_score_wrong_argument_is_one_line(base_dir, tmp_path, capsys, monkeypatch, arguments, code, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    open_store(str(tmp_path / "store"))
    places = {
        "BASE": base_dir,
        "FILE": write(tmp_path, GOOD),
        "STORE": tmp_path / "store",
        "FOLDER": tmp_path / "folder",
    }
    assert main(["score", *(str(places.get(a, a)) for a in arguments)]) == code
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_score_adapter_of_another_base_is_refused(adapter_dir, tmp_path, capsys):
    asked = write(tmp_path, GOOD)
    assert main(["score", "lab:informative", str(asked), "--adapter", str(adapter_dir)]) == 2
    assert "does not fit this model" in capsys.readouterr().err
