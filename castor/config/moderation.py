"""Moderation models: which harm categories a question with its answer falls in, and how severe the harm is."""

from typing import Literal

from pydantic import Field

from castor.config.model import ModelOption
from castor.config.supervised import Supervised

Taxonomy = Literal["beavertails", "pku"]
InputKind = Literal["pair", "answer", "question"]


class Moderation(Supervised):
    """QA-moderation (BeaverTails sec. 4.1) or severity-sensitive moderation (PKU-SafeRLHF sec. 4.1)."""

    model: ModelOption = Field("stage:sft", description="backbone to start from: stage:NAME, a folder, or a hub id")
    taxonomy: Taxonomy = Field("beavertails", description="its labels: BeaverTails' 14, or PKU-SafeRLHF's 19")
    map_taxonomy: bool = Field(
        False,
        description="translate rows labelled in the other taxonomy (a many-to-many map: a translated row gets every "
        "label that shares cases with its own); otherwise such a row is an error",
    )
    severity: bool = Field(
        False, description="also an ordinal head for the severity, 0 to 3; its first step is then the unsafe decision"
    )
    input: InputKind = Field(
        "pair", description="question and answer together; answer and question are baselines that see only that"
    )
    class_weights: Literal["sqrt", "balanced", "none"] = Field(
        "sqrt",
        description="weight of a label's positive rows, because most labels are rare: sqrt(negatives / positives), "
        "negatives / positives, or 1",
    )
    max_class_weight: float = Field(10.0, ge=1, description="the weights are cut to [1 / this, this]")
    unsafe_weight: float = Field(
        1.0, ge=0, description="weight of the any-label loss of rows that are unsafe without saying in which category"
    )
    severity_weight: float = Field(1.0, ge=0, description="weight of the ordinal severity loss")
    unsafe_objective: Literal["balanced_accuracy", "f1"] = Field(
        "balanced_accuracy",
        description="what the threshold of the unsafe decision maximises on validation rows (each label's own "
        "threshold maximises its F1); f1 calls everything unsafe where most rows are and the model is weak",
    )
    threshold_floor: float = Field(
        0.05, ge=0, lt=0.5, description="no label's threshold is chosen below it: a rare label must not fire on noise"
    )
    calibrate: bool = Field(
        True, description="temperature scaling on validation rows, of the labels and of the severity"
    )
