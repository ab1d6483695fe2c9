"""`castor export`: a score or moderation model in the layout another program reads."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from castor.io.errors import CastorError
from castor.io.files import local_path, make_folder
from castor.model_reference import ModelReference

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
    drop_offset: Annotated[
        bool,
        typer.Option(
            "--drop-offset", help="rewards: leave out a constant that the architecture's classifier has no place for"
        ),
    ] = False,
) -> None:
    """Write the score or moderation model MODEL to FOLDER in another layout."""
    model = str(local_path(model)) if model.startswith("~") else model
    if folder.exists():
        same = folder.absolute() == Path(model).absolute()
        raise CastorError(
            f"{folder} {'is the model itself' if same else 'exists'}: name a folder that is not there yet"
        )
    make_folder(folder.parent)
    import torch

    from castor.models.export import save_classifier
    from castor.models.load import load_score_model
    from castor.models.moderation import is_moderation_model
    from castor.models.pku import save_pku
    from castor.models.score import save_score_model

    precision, source = getattr(torch, dtype), ModelReference(model, revision, trust_remote_code)
    if is_moderation_model(source):
        _export_moderation(source, folder, layout, precision)
        return
    score_model = load_score_model(source, torch.float32).eval()
    offset = 0.0
    if layout is Layout.SEQUENCE_CLASSIFICATION:
        offset = save_classifier(score_model, folder, source, drop_offset=drop_offset, dtype=precision)
    else:
        cast("torch.nn.Module", score_model.backbone).to(precision)  # a head stays float32
        if layout is Layout.PKU:
            save_pku(score_model, folder, source)
        else:
            weights = {name: weight.detach() for name, weight in score_model.named_parameters()}
            save_score_model(folder, score_model.backbone, weights, score_model.info, source)
    typer.echo(f"{score_model.info.score_type} model {model} written to {folder} as {layout.value}")
    if offset:
        typer.echo(f"add {offset:.6g} (castor_offset in its config.json) to a logit to get the score")


def _export_moderation(model: ModelReference, folder: Path, layout: Layout, dtype: torch.dtype) -> None:
    from castor.models.moderation import export_classifier, read_moderation_info

    if layout is not Layout.SEQUENCE_CLASSIFICATION:
        raise CastorError(f"{model} is a moderation model, which can be written --as sequence-classification only")
    info = read_moderation_info(model)
    export_classifier(model, folder, dtype)
    typer.echo(f"moderation model {model} written to {folder} as {layout.value}")
    left = ["the unsafe decision's threshold", "the labels' thresholds", *["the severity head"] * info.severity]
    typer.echo(
        f"sigmoids of its {len(info.categories)} logits are the label probabilities; left out: {', '.join(left)}"
    )
