"""A small model made on the spot."""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from castor.config.base import Section
from castor.config.data import DataSource


class DemoModel(Section):
    """A small Llama with a tokenizer trained on the training text, both made on the spot."""

    data: list[DataSource] = Field(
        default_factory=lambda: [DataSource(limit=12000)], description="text to train the tokenizer on"
    )
    tokenizer: Literal["word", "bpe"] = Field("word", description="whole words, or byte-level BPE (any text)")
    vocab_size: int = Field(1024, ge=64, description="most entries of the vocabulary")
    hidden_size: int = Field(192, ge=8, description="width")
    layers: int = Field(2, ge=1, description="decoder layers")
    heads: int = Field(4, ge=1, description="attention heads")
    intermediate_size: int = Field(512, ge=8, description="width of the MLP")
    max_position_embeddings: int = Field(256, ge=16, description="context length in tokens")
    initializer_range: float = Field(0.08, gt=0, description="standard deviation of the initial weights")

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "DemoModel":
        if self.hidden_size % (2 * self.heads):
            raise ValueError(f"hidden_size {self.hidden_size} is not an even multiple of heads {self.heads}")
        return self

    @field_validator("data", mode="before")
    @classmethod
    def _one_source_or_many(cls, value: object) -> object:
        return [value] if isinstance(value, dict) else value
