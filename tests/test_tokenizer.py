"""The tokenizer read without transformers: the same ids, texts and special tokens, or none at all."""

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen3Config

from metagen_ray.base_model import WEIGHTS
from metagen_ray.prompts import Renderer, chat, examples_chat
from metagen_ray.serving.judge import special_texts
from metagen_ray.serving.numbers import number_tree
from metagen_ray.tokenizer import load_tokenizer, plain_tokenizer
from tests.tiny import TEMPLATE, make_tokenizer

TEXTS = [
    "Should I lend money to a friend?",
    "  two  blanks , and\n\na line\tand a tab ",
    "naïve 東京 🙂 e\u0301 — “quoted” \u00a0 1234567 3.14",
    "<|end|><|user|>forged <|beg in|> <extra> <s> </s>",
    "",
]
# Blocks, loops with break, special tokens by name, a variable nobody sets, whitespace control.
LONG_TEMPLATE = """{{ bos_token }}
{%- for m in messages %}
    {%- if m.role == "system" and not loop.first %}{% continue %}{% endif %}
    {%- if enable_thinking is defined and enable_thinking %}<think>{% endif %}
<|{{ m.role }}|>
{{ m.content | trim }}{{ eos_token }}
{% endfor %}
{%- if add_generation_prompt %}{% if not tools and not documents %}<|assistant|>
{% endif %}{% endif %}
"""


def learned() -> PreTrainedTokenizerFast:
    """A byte-level BPE with merges, learned from a few words, with a normalizer and special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*TEXTS[:3], "money friend doctor lend ask should " * 20], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="<|end|>", pad_token="</s>")


def with_beginning() -> PreTrainedTokenizerFast:
    """The same with a post-processor that puts a beginning before every text, and tokens added that are not special."""
    tokenizer = learned()
    backend = tokenizer.backend_tokenizer
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", backend.token_to_id("<s>"))]
    )
    backend.add_tokens(["<extra>", AddedToken("東京", normalized=True, lstrip=True)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="<|end|>", add_bos_token=True)


def saved(folder: Path, tokenizer: Any, template: str, model_type: str = "qwen3") -> Path:
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    config = Qwen3Config(hidden_size=64, num_hidden_layers=1).to_dict()
    (folder / "config.json").write_text(json.dumps(config | {"model_type": model_type}))
    return folder


@pytest.fixture(
    params=["lab", "tiny", "learned", "beginning", "llama"],
)
def directory(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    made = {
        "lab": lambda: WEIGHTS / "informative",
        "tiny": lambda: saved(tmp_path, make_tokenizer("digits"), TEMPLATE),
        "learned": lambda: saved(tmp_path, learned(), LONG_TEMPLATE),
        "beginning": lambda: saved(tmp_path, with_beginning(), LONG_TEMPLATE),
        "llama": lambda: saved(tmp_path, with_beginning(), TEMPLATE, "llama"),
    }
    return made[request.param]()


def theirs(directory: Path) -> Any:
    return AutoTokenizer.from_pretrained(directory, trust_remote_code=False, local_files_only=True)


def random_texts() -> list[str]:
    rng = random.Random(0)
    pieces = [*TEXTS, "a", "é", "\n", " ", "<|end|>", "money", "0", "42", "\ud7ff", "\u200d"]
    return ["".join(rng.choices(pieces, k=rng.randrange(1, 8))) for _ in range(200)]


def test_plain_tokenizer_gives_the_ids_of_transformers(directory: Path):
    ours, other = plain_tokenizer(directory), theirs(directory)
    assert ours is not None
    for text in [*TEXTS, *random_texts()]:
        ids = ours.encode(text, add_special_tokens=False)
        assert ids == other.encode(text, add_special_tokens=False)
        for skip in (True, False):
            assert ours.decode(ids, skip_special_tokens=skip) == other.decode(ids, skip_special_tokens=skip)
    one, two = Renderer(ours), Renderer(other)
    examples = [(text, f"{text} indeed") for text in TEXTS]
    for messages in (chat(TEXTS[0]), examples_chat(examples), [{"role": "system", "content": "Hi."}, *chat("So?")]):
        assert one.prompt(messages) == two.prompt(messages)
    assert one.examples(examples) == two.examples(examples) and one.end_id == two.end_id
    assert one.completion(TEXTS[2]) == two.completion(TEXTS[2])


def test_plain_tokenizer_gives_the_judge_the_same_numbers_and_special_texts(directory: Path):
    ours, other = plain_tokenizer(directory), theirs(directory)
    assert number_tree(ours) == number_tree(other)
    assert special_texts(ours) == special_texts(other)


def edit(folder: Path, file: str, **changes: Any) -> None:
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda d: edit(d, "tokenizer_config.json", tokenizer_class="Qwen2Tokenizer"),
        lambda d: edit(d, "tokenizer_config.json", split_special_tokens=True),
        lambda d: edit(d, "tokenizer_config.json", eos_token="<extra>"),
        lambda d: edit(d, "tokenizer_config.json", extra_special_tokens=["<new>"]),
        lambda d: (
            edit(d, "tokenizer_config.json", chat_template=[{"name": "default", "template": "x"}])
            or (d / "chat_template.jinja").unlink()
        ),
        lambda d: edit(d, "config.json", model_type="qwen2"),
        lambda d: edit(d, "tokenizer.json", truncation={"max_length": 4, "stride": 0, "strategy": "LongestFirst"}),
        lambda d: (d / "special_tokens_map.json").write_text("{}"),
        lambda d: (d / "chat_template.jinja").write_text("{{ strftime_now('%Y') }}"),
        lambda d: (d / "chat_template.jinja").write_text("{{ messages | tojson }}"),
        lambda d: (d / "chat_template.jinja").write_text("{% generation %}a{% endgeneration %}"),
        lambda d: (d / "chat_template.jinja").write_text("{% set ns = namespace(a=1) %}{{ ns.a }}"),
        lambda d: (d / "tokenizer_config.json").unlink(),
    ],
    ids=range(13),
)
def test_plain_tokenizer_leaves_what_it_does_not_know_to_transformers(tmp_path: Path, spoil: Any):
    folder = saved(tmp_path, with_beginning(), TEMPLATE)
    assert plain_tokenizer(folder) is not None
    spoil(folder)
    assert plain_tokenizer(folder) is None


def test_load_tokenizer_falls_back_to_the_class_a_model_names(tmp_path: Path):
    folder = shutil.copytree(WEIGHTS / "informative", tmp_path / "base")
    edit(folder, "tokenizer_config.json", mask_token="<|pad|>")
    assert load_tokenizer(folder).mask_token == "<|pad|>"


def test_answer_actor_imports_neither_torch_nor_transformers():
    code = (
        "import sys\n"
        "from metagen_ray.stages.judge import JudgeWorker\n"
        "from metagen_ray.study import load_study\n"
        "app = {'url': 'http://127.0.0.1:9', 'token_path': '', 'base_name': 'b'}\n"
        "worker = JudgeWorker(load_study('pocket').model_dump(mode='json'), app, {}, {})\n"
        "worker.plan.judged, worker.plan.context.tokenizer\n"
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
