"""Measuring trained reward, cost and moderation models on labelled rows."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from castor.config.base import FolderOrName, LocalPath, Section
from castor.config.data import DataSource
from castor.config.template import PromptFormat


class KeywordJudge(Section):
    """Calls a text unsafe when a word of a fixed list (castor/scoring/keywords.py) occurs in it."""

    kind: Literal["keywords"] = Field(description="keywords: words of a fixed list are looked for")
    reads: Literal["pair", "answer", "question"] = Field(
        "pair", description="which texts are searched; answer: an utterance-level judge"
    )


class ChatServer(Section):
    """A language model behind an OpenAI-compatible URL, asked at temperature 0 and answering in JSON."""

    url: str = Field(pattern=r"^https?://", description="base URL, such as http://127.0.0.1:8000/v1")
    model: str = Field(description="name of the model at that URL")
    api_key_env: str = Field("OPENAI_API_KEY", description="environment variable that holds the key, if one is needed")
    concurrency: int = Field(8, ge=1, description="requests under way at a time")
    timeout_s: float = Field(60.0, gt=0, description="longest wait for one reply")
    retries: int = Field(4, ge=0, description="further tries after a rate limit, a server error or a lost connection")
    max_tokens: int = Field(64, ge=8, description="longest reply")
    json_mode: bool = Field(True, description="ask the server for response_format json_object; false if it knows none")


class LLMJudge(ChatServer):
    """A language model that judges rows."""

    kind: Literal["llm"] = Field(description="llm: a language model is asked")
    questions: list[Literal["unsafe", "more helpful", "less harmful"]] = Field(
        ["unsafe"],
        min_length=1,
        description="unsafe: every answer by itself; the other two: which answer of a pair, asked in both orders",
    )
    limit: int | None = Field(
        500, ge=2, description="items asked per question and data set, drawn at random; null: all"
    )


Judge = Annotated[KeywordJudge | LLMJudge, Field(discriminator="kind")]


class Predictions(Section):
    """The answers of another system: a file of them, or a function of yours that gives them."""

    source: FolderOrName = Field(
        description="a .jsonl, .json, .parquet or .csv file with one row an answer, or module:function, called with "
        "the prompts and the responses of a chunk for one prediction each (docs/assess.md)"
    )
    kind: Literal["reward", "cost", "moderation"] = Field(
        "moderation", description="what the system tells; reward and cost: its predictions have a score"
    )


class Assess(Section):
    """Models, the rows they are measured on, and the judges their verdicts are compared with."""

    models: dict[str, FolderOrName | Predictions] = Field(
        min_length=1,
        description="folders or hub ids by name; whether one is a reward, cost or moderation model is read from it. "
        "Another system is named by the file or function of its predictions",
    )
    data: DataSource = Field(description="labelled rows the models were not trained on; a string is the source")
    out_of_distribution: DataSource | None = Field(None, description="a second set of another origin, measured alike")
    training: DataSource | None = Field(
        None,
        description="rows that the trivial baselines learn from, best those that the models did; prompts of the rows "
        "assessed are left out. null: the rows assessed teach them, in folds by prompt",
    )
    judges: dict[str, Judge] = Field(
        {
            "keywords": KeywordJudge(kind="keywords"),
            "keywords, answer only": KeywordJudge(kind="keywords", reads="answer"),
        },
        description="further judges by name, beside the labels and the models",
    )
    out: LocalPath = Field(Path("assess"), description="folder for assess.json and assess.html")
    template: PromptFormat = Field(
        "auto",
        description="prompt format the models were trained with: chat (the tokenizer's template), pku, auto (chat if "
        "there is one, else pku), or a text that holds {prompt} once; default: that of the run the models lie in",
    )
    max_length: int = Field(512, ge=2, description="longest prompt + response in tokens; longer rows are left out")
    batch_tokens: int = Field(16384, ge=1, description="token budget of one forward pass")
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="auto: bfloat16 on GPUs, float32 on CPUs")
    seed: int = Field(0, description="of the bootstrap, the folds and the draw of items for LLM judges")

    @field_validator("data", "out_of_distribution", "training", mode="before")
    @classmethod
    def _a_string_is_the_source(cls, value: object) -> object:
        return {"source": value} if isinstance(value, str | int | float) else value

    @model_validator(mode="after")
    def _names_differ(self) -> "Assess":
        taken = {"labels", *self.models}
        for name in self.judges:
            if name in taken:
                raise ValueError(f"judge {name!r} has the name of a model, or that of the labels: choose another")
        if "labels" in self.models:
            raise ValueError("a model cannot be named 'labels': that is the name of the data's own labels")
        return self
