"""`castor export`: a score or moderation model in the layout another program reads."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from castor.cli.run_format import format_of_run
from castor.io.errors import CastorError
from castor.io.files import local_path, make_folder
from castor.model_reference import CARD, ModelReference

if TYPE_CHECKING:
    import torch


class Layout(StrEnum):
    """What other programs call it by."""

    SEQUENCE_CLASSIFICATION = "sequence-classification"
    PKU = "pku"
    CASTOR = "castor"


class Precision(StrEnum):
    """Of the weights that are written."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


def export(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="folder or hub id of a reward, cost or moderation model")
    ],
    folder: Annotated[
        Path, typer.Argument(parser=local_path, metavar="FOLDER", help="where to write it; must not exist yet")
    ],
    layout: Annotated[
        Layout,
        typer.Option(
            "--as",
            help="plain transformers classifier; for score models also PKU-Alignment's LlamaForScore, or our own",
        ),
    ],
    dtype: Annotated[
        Precision, typer.Option(help="of the backbone: float32 keeps the scores, the others round them")
    ] = Precision.FLOAT32,
    revision: Annotated[str | None, typer.Option(help="of a hub id: branch, tag or commit")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="run the code that MODEL ships")
    ] = False,
    template: Annotated[
        str | None,
        typer.Option(
            help="prompt format MODEL was trained with: chat, pku, a text with {prompt}; default: that of the run it "
            "lies in, else auto"
        ),
    ] = None,
) -> None:
    """Write the score or moderation model MODEL to FOLDER in another layout."""
    model = str(local_path(model)) if model.startswith("~") else model
    if folder.exists():
        same = folder.absolute() == Path(model).absolute()
        raise CastorError(
            f"{folder} {'is the model itself' if same else 'exists'}: name a folder that is not there yet"
        )
    make_folder(folder.parent)
    # no GPU is used here; DeepSpeed, which transformers imports, would warn of there being none
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import torch

    from castor.models.export import save_classifier
    from castor.models.load import load_score_model
    from castor.models.moderation import export_classifier, is_moderation_model
    from castor.models.pku import save_pku
    from castor.models.score import save_score_model

    precision, source = getattr(torch, dtype), ModelReference(model, revision, trust_remote_code)
    _require_judge(source)
    form = template or format_of_run(model) or "auto"
    if is_moderation_model(source):
        if layout is not Layout.SEQUENCE_CLASSIFICATION:
            raise CastorError(f"{source} is a moderation model, which can be written --as sequence-classification only")
        export_classifier(source, folder, precision, form)
        typer.echo(f"moderation model {model} written to {folder} as {layout.value}")
        _tell(folder, precision)
        return
    score_model = load_score_model(source, torch.float32).eval()
    kind, offset = score_model.info.score_type, 0.0
    if layout is Layout.SEQUENCE_CLASSIFICATION:
        offset = save_classifier(score_model, folder, source, template=form, dtype=precision)
    else:
        cast("torch.nn.Module", score_model.backbone).to(precision)  # a head stays float32
        if layout is Layout.PKU:
            save_pku(score_model, folder, source)
        else:
            weights = {name: weight.detach() for name, weight in score_model.named_parameters()}
            save_score_model(folder, score_model.backbone, weights, score_model.info, source)
    typer.echo(f"{kind} model {model} written to {folder} as {layout.value}")
    if layout is Layout.SEQUENCE_CLASSIFICATION:
        _tell(folder, precision)
    if offset:
        typer.echo(
            f"a classifier of this architecture has no place for a constant: the {kind} is its logit plus {offset:.6g} "
            "(castor.offset in config.json), which the card's code adds and a program that reads the bare logit lacks"
        )


def _tell(folder: Path, dtype: torch.dtype) -> None:
    """What a classifier says, and what it lost."""
    import torch

    from castor.models.backbone import load_config
    from castor.models.classifier_card import block_of

    block = block_of(load_config(folder))
    assert block is not None  # just written
    typer.echo(f"it reads prompts in the format {block['input']['template']!r} (--template gives another)")
    typer.echo(f"{folder / CARD} has the code that gives the same with transformers alone")
    if dtype != torch.float32:
        typer.echo("its weights are rounded: scores differ a little, and so do verdicts that are close to a threshold")


def _require_judge(model: ModelReference) -> None:
    """Raise CastorError for an adapter and for a language model, saying what each is good for as it is."""
    from castor.models.backbone import load_config
    from castor.models.head_kind import head_kind

    folder = model.local(weights=False)
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        merged = folder.with_name(folder.name.removesuffix(".adapter"))
        raise CastorError(
            f"{model} is a LoRA adapter, which peft reads as it is (PeftModel.from_pretrained); the model it was "
            f"merged into, which transformers reads as it is, is {merged}"
        )
    architectures = getattr(load_config(model), "architectures", None) or []
    if head_kind(model) is None and any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in architectures):
        raise CastorError(
            f"{model} is a language model, whose folder transformers and vLLM read as it is (AutoModelForCausalLM): "
            "copy it; castor export is for reward, cost and moderation models"
        )
