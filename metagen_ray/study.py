"""Every decision of a study as one frozen model. Owns defaults, checks and the fingerprint, and no stage's work.

A study is read from a YAML file or a shipped preset, plus `--set key=value`. What decides content is in the
fingerprint; where and with what it is computed (`resources`, `store`) and what it is called (`name`) is not.
"""

import difflib
import hashlib
import json
import reprlib
from collections.abc import Iterable, Mapping
from importlib import resources as package_files
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from metagen_ray.errors import InputError

UNFINGERPRINTED = ("name", "store", "resources")
STUDY_BYTES = 1_000_000


class Section(BaseModel):
    """A frozen group of settings that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Recipe(Section):
    """One LoRA fine-tune: what is trained, how fast and how long."""

    rank: int = Field(default=8, ge=1, description="LoRA rank")
    alpha: float = Field(default=16.0, gt=0, description="LoRA alpha; the update is scaled by alpha / rank")
    lr: float = Field(default=1e-3, gt=0, description="peak learning rate of AdamW")
    epochs: int = Field(default=3, ge=1, description="passes over the rows")
    batch_rows: int = Field(default=8, ge=1, description="completions per optimizer step, over all ranks")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        default="constant", description="decay of the rate after warm-up"
    )
    warmup_share: float = Field(default=0.0, ge=0, lt=1, description="share of all steps spent in linear warm-up")
    weight_decay: float = Field(default=0.0, ge=0, description="decoupled weight decay of AdamW")
    clip: float = Field(default=1.0, gt=0, description="gradient norm at which an adapter's gradient is clipped")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout on the input of each LoRA pair")
    targets: tuple[str, ...] | Literal["all-linear"] = Field(
        default="all-linear", description="module names that get LoRA"
    )


class Split(Section):
    """How the domains fall into halves."""

    eval_share: float = Field(default=0.5, gt=0, lt=1, description="share of the groups in the meta-eval half")
    inner_share: float = Field(
        default=0.2, ge=0, lt=1, description="share of meta-train set apart to choose recipes on"
    )
    evaluate: Literal["eval", "inner"] = Field(
        default="eval",
        description="`inner` evaluates on the inner part of meta-train and leaves the eval half alone: for tuning",
    )


class Context(Section):
    """The in-context examples of an object-ICL prompt."""

    k: int = Field(default=8, ge=1, description="examples of the training set in one prompt")
    draws: int = Field(
        default=4, ge=1, description="independent k-draws per training domain, the questions dealt over them"
    )


META_RECIPE = Recipe(rank=16, alpha=32.0, lr=2e-3, epochs=2, batch_rows=64, schedule="linear")


class MetaSFT(Section):
    """Training the base model to foresee fine-tunes, beside its recipe."""

    recipe: Recipe = META_RECIPE
    diagonal: bool = Field(default=False, description="also train on cells that ask a domain about itself")
    branches: int = Field(default=8, ge=1, description="questions trained under one shared prefix, a fresh k-draw each")

    @field_validator("recipe", mode="before")
    @classmethod
    def _over_own_defaults(cls, given: Any) -> Any:
        """What a recipe leaves out keeps meta-SFT's default, not that of an object-SFT."""
        return {**META_RECIPE.model_dump(), **given} if isinstance(given, Mapping) else given


class Predict(Section):
    """How predictions are sampled."""

    samples: int = Field(
        default=4,
        ge=1,
        description="answers per question for the expectation; the first `samples` of the study are the sampled form",
    )
    untrained_k: tuple[int, ...] = Field(
        default=(), description="further values of k at which the untrained model predicts"
    )


class Judge(Section):
    """Grading of answers."""

    min_mass: float = Field(
        default=0.25, gt=0, lt=1, description="probability on numbers below which an answer is unscored"
    )
    max_unscored: float = Field(
        default=0.05, ge=0, le=1, description="share of unscored answers above which the stage fails"
    )


class Analysis(Section):
    """Intervals and tests."""

    resamples: int = Field(default=1000, ge=100, description="two-way cluster bootstrap resamples")
    deals: int = Field(default=100, ge=1, description="shuffles of the dealt baselines")
    level: float = Field(default=0.95, gt=0.5, lt=1, description="coverage of the intervals")


SHARDED_STAGE = 3  # of ZeRO: the frozen base lies in parts over the workers


class Resources(Section):
    """Where and with what; never part of the fingerprint."""

    lanes: int = Field(default=1, ge=1, description="object-SFT lanes that run side by side")
    workers_per_lane: int = Field(default=1, ge=1, description="data-parallel workers of one lane")
    bank: int = Field(default=0, ge=0, description="adapters that train in one pass; 0 takes as many as pay")
    meta_workers: int = Field(default=1, ge=1, description="data-parallel workers of meta-SFT")
    gpus_per_worker: float = Field(default=0, ge=0, description="GPUs of one training worker; 0 trains on CPU")
    cpus_per_worker: float = Field(
        default=0.8, gt=0, description="CPUs of one training worker; fractions leave room for the app's small parts"
    )
    threads_per_worker: int = Field(
        default=0,
        ge=0,
        description="torch threads of one training worker on CPU; 0 takes its whole CPUs. More than it reserves pays "
        "where training and serving take turns on one machine",
    )
    zero_stage: Literal[0, 1, 2, 3] = Field(
        default=1,
        description="DeepSpeed ZeRO stage; 3 also shards the frozen base over the workers of a lane and of meta-SFT",
    )
    replicas: int = Field(default=1, ge=1, description="serving replicas")
    max_replicas: int | None = Field(default=None, ge=1, description="replicas under load; unset keeps `replicas`")
    gpus_per_replica: float = Field(
        default=0, ge=0, description="GPUs of one replica; 0 serves on CPU, more than one is tensor parallel"
    )
    cpus_per_replica: float = Field(default=1, gt=0, description="CPUs of one replica")
    kv_cache_gib: float = Field(default=0.25, gt=0, description="KV cache of a CPU replica, GiB")
    shards_at_once: int = Field(
        default=3,
        ge=1,
        description="shards that are asked at the same time, for each replica; the next one's prompts "
        "are read while the last answers of another are written",
    )
    prompts_per_request: int = Field(default=128, ge=1, description="prompts of one HTTP request")
    host: str = Field(
        default="",
        description="address the app listens on; empty takes loopback on one machine, the head's private address on a "
        "cluster",
    )
    port: int = Field(default=0, ge=0, lt=65536, description="port of the app; 0 takes any that is free")
    phases: Literal["together", "in_turn"] = Field(
        default="together",
        description="`together`: the app stays up while something trains, so both must fit; `in_turn`: it ends before "
        "a training and comes back after it, so each has all GPUs",
    )
    train_nodes: dict[str, str] = Field(default={}, description="labels of the nodes that may train; none for all")
    serve_nodes: dict[str, str] = Field(default={}, description="labels of the nodes that may serve; none for all")
    wait_for_nodes_s: float = Field(
        default=900, ge=0, description="how long the plan waits for nodes of a cluster that grows, seconds"
    )
    track: tuple[Literal["wandb", "mlflow"], ...] = Field(
        default=(), description="trackers that get the curves of trainings too, set up by their own environment"
    )
    memory_gib: float = Field(default=8.0, gt=0, description="memory the plan needs on one node, GiB")
    overlap: Literal["auto", "on", "off"] = Field(
        default="auto",
        description="ask and judge while adapters and meta-SFT train; `auto` where both have devices and cores of "
        "their own",
    )

    @model_validator(mode="after")
    def _replicas_fit(self) -> "Resources":
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError(f"max_replicas ({self.max_replicas}) must be at least replicas ({self.replicas})")
        return self

    @property
    def threads(self) -> int:
        """Torch threads of one training worker."""
        return self.threads_per_worker or max(1, int(self.cpus_per_worker))

    @property
    def askers(self) -> int:
        """Ray Data actors that ask the app, each of them `shards_at_once` shards."""
        return self.replicas

    @property
    def asked_at_once(self) -> int:
        """Shards that are asked at the same time, by all askers."""
        return self.askers * self.shards_at_once

    @field_validator("gpus_per_replica")
    @classmethod
    def _whole_gpus(cls, given: float) -> float:
        if given > 1 and given != int(given):
            raise ValueError(f"{given:g} GPUs: a replica takes a share of one GPU, or whole ones")
        return given

    @field_validator("overlap", mode="before")
    @classmethod
    def _as_yaml_reads_it(cls, given: Any) -> Any:
        """YAML takes a bare `on` or `off` for a truth value."""
        return ("on" if given else "off") if isinstance(given, bool) else given


class Study(Section):
    """One study, complete."""

    name: str = Field(
        default="study", pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$", description="folder name of the run"
    )
    suite: str = Field(default="pocket_advice", description="shipped suite")
    domains: int | None = Field(default=None, ge=4, description="use the first N domains of the suite; all if unset")
    model: str = Field(
        default="lab:informative", description="`lab:NAME` for a shipped base, else a local model directory"
    )
    seed: int = Field(default=0, ge=0, description="study seed: the split and meta-SFT")
    truth_seed: int = Field(
        default=0,
        ge=0,
        description="seed of the object-SFTs and of the k-draws; shared by studies that differ in `seed`",
    )
    questions: int = Field(default=4, ge=1, description="held-out questions asked per domain (Q)")
    samples: int = Field(default=2, ge=1, description="answers per question and cell (n)")
    temperature: float = Field(default=1.0, gt=0, description="sampling temperature of truth and predictors")
    max_answer_tokens: int = Field(default=24, ge=1, description="token limit of an answer, for truth and predictors")
    block_domains: int = Field(default=20, ge=1, description="eval domains per shard")
    second_seed_domains: int = Field(
        default=0, ge=0, description="training domains fine-tuned with a second seed (GT-seed)"
    )
    split: Split = Split()
    context: Context = Context()
    object_sft: Recipe = Recipe()
    meta_sft: MetaSFT = MetaSFT()
    predict: Predict = Predict()
    judge: Judge = Judge()
    analysis: Analysis = Analysis()
    resources: Resources = Resources()
    store: str = Field(
        default="runs", description="root of the store: a folder, s3://BUCKET/PREFIX or gs://BUCKET/PREFIX"
    )

    @model_validator(mode="after")
    def _samples_fit(self) -> "Study":
        if self.predict.samples < self.samples:
            raise ValueError(f"predict.samples ({self.predict.samples}) must be at least samples ({self.samples})")
        return self

    def fingerprint(self) -> str:
        """The first 12 hex digits of the sha256 over what decides the study's content."""
        content = self.model_dump(mode="json", exclude=set(UNFINGERPRINTED))
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def run_name(self) -> str:
        """Folder of the run under ROOT/studies."""
        return f"{self.name}-{self.fingerprint()}"

    def to_yaml(self) -> str:
        """The resolved study, readable and loadable again."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def preset_names() -> list[str]:
    """Names of the shipped studies, sorted."""
    return sorted(p.name.removesuffix(".yaml") for p in _presets().iterdir() if p.name.endswith(".yaml"))


def load_study(source: str, overrides: Iterable[str] = ()) -> Study:
    """Read a preset by name or a YAML file by path, apply `key=value` overrides (dotted keys), and check it.

    Raises InputError for an unknown preset, key or type, and names the nearest key.
    """
    values = parse_yaml(_read_source(source), source)
    for override in overrides:
        _apply_override(values, override)
    return study_from(values, source)


def study_from(values: Mapping[str, Any], where: str) -> Study:
    """Check a mapping as a Study; InputError says which key is wrong and what would be right."""
    try:
        return Study.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{where}: " + "; ".join(_explain(e) for e in error.errors())) from None


def parse_yaml(text: str, where: str) -> dict[str, Any]:
    """A YAML mapping, read safely; InputError if it is not one."""
    try:
        values = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{where}: not valid YAML ({' '.join(str(error).split())[:200]}); mend the file") from None
    if values is None:
        values = {}
    if not isinstance(values, dict) or not all(isinstance(k, str) for k in values):
        raise InputError(f"{where}: a study is a mapping of settings; found {type(values).__name__}")
    return values


def _presets():
    return package_files.files("metagen_ray") / "presets"


def _read_source(source: str) -> str:
    if source in preset_names():
        return (_presets() / f"{source}.yaml").read_text(encoding="utf-8")
    path, shown = Path(source), reprlib.repr(source)
    if path.suffix in {".yaml", ".yml"}:
        try:
            with path.open("rb") as file:
                text = file.read(STUDY_BYTES + 1)
            if len(text) > STUDY_BYTES:
                raise InputError(f"{shown}: larger than {STUDY_BYTES:,} bytes; a study is a page of settings")
            return text.decode("utf-8")
        except (OSError, ValueError) as error:
            raise InputError(f"{shown}: cannot read the study ({error}); give a YAML file or a preset") from None
    near = difflib.get_close_matches(source, preset_names(), n=1, cutoff=0.3)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise InputError(f"unknown preset {shown}; shipped are {', '.join(preset_names())}{hint}")


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise InputError(f"--set {override!r}: write key=value, e.g. --set context.k=8")
    *parents, last = key.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise InputError(f"--set {override!r}: {parent!r} is a value, not a section")
    try:
        values[last] = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise InputError(f"--set {reprlib.repr(override)}: not a YAML value; quote it") from None


def _explain(error: Any) -> str:
    path = [str(p) for p in error["loc"]]
    where = ".".join(path) or "study"
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(path[-1], _known_keys(path[:-1]), n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(_known_keys(path[:-1]))}"
        return f"unknown key {where!r}{hint}"
    shown = reprlib.repr(error.get("input"))  # whole, a few lines of YAML aliases would fill the memory
    return f"{where}: {error['msg']}" + (f" (got {shown[:60]})" if path else "")


def _known_keys(path: list[str]) -> list[str]:
    model: type[BaseModel] = Study
    for part in path:
        annotation = model.model_fields[part].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return list(model.model_fields)
