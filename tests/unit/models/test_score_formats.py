"""Score models on any backbone, and the layouts they are read from and written to."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from typer.testing import CliRunner

from castor.cli.main import app
from castor.config.demo_model import DemoModel
from castor.io.errors import CastorError
from castor.models.backbone import hidden_width, isolates_sequences
from castor.models.export import save_classifier
from castor.models.load import load_critic, load_score_model, read_score_info
from castor.models.pku import save_pku
from castor.models.policy import PolicyModel
from castor.models.score import ScoreInfo, ScoreModel, save_score_model
from castor.models.tiny import train_tokenizer
from castor.packing import pack_rows
from tests.numerics import TINY_MODELS, assert_close

SIZE = {
    "vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": None,
    "eos_token_id": 1, "initializer_range": 0.3,
}  # fmt: skip
GPT2 = {"n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 64}
ARCHITECTURES = {
    "llama": ("llama", {}),
    "qwen2": ("qwen2", {}),
    "qwen2 window": ("qwen2", {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 0}),
    "qwen3": ("qwen3", {"head_dim": 8}),
    "mistral window": ("mistral", {"sliding_window": 3}),
    "gemma": ("gemma", {"head_dim": 8}),
    "gemma3 window": ("gemma3_text", {"head_dim": 8, "sliding_window": 3}),
    "gpt2": ("gpt2", GPT2),
    "opt": ("opt", {"ffn_dim": 48, "word_embed_proj_dim": 32, "init_std": 0.3}),
    "opt projected": ("opt", {"ffn_dim": 48, "word_embed_proj_dim": 16, "init_std": 0.3}),
    "phi": ("phi", {}),
    "gpt_neox": ("gpt_neox", {}),
    "bloom": ("bloom", {"n_layer": 1, "n_head": 4}),
}
PACKS_APART = {"opt", "opt projected", "bloom"}  # transformers does not keep their packed sequences apart
BIASED_NORM = {"gpt2", "opt", "phi", "gpt_neox", "bloom"}  # a constant can be added before the head
LENGTHS = np.array([7, 5, 1, 9, 4])
ENDS = torch.from_numpy(LENGTHS.cumsum() - 1)


def sequences(seed=0):
    tokens = np.random.default_rng(seed).integers(5, SIZE["vocab_size"], int(LENGTHS.sum()))
    return tokens, np.split(tokens, LENGTHS.cumsum()[:-1])


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(DemoModel(), ["one two three four"])


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tokenizer):
    """Language models by architecture, made when first asked for."""
    root, made = tmp_path_factory.mktemp("architectures"), {}

    def folder(name):
        if name not in made:
            kind, options = ARCHITECTURES[name]
            torch.manual_seed(0)
            made[name] = str(root / name.replace(" ", "_"))
            lm = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**(SIZE | options)))
            with torch.no_grad():
                for parameter in lm.parameters():  # biases too: a fresh norm's is zero
                    parameter.add_(0.1 * torch.randn_like(parameter))
            lm.save_pretrained(made[name])
            tokenizer.save_pretrained(made[name])
        return made[name]

    return folder


def make_score_model(folder, info, head_bias=True, seed=3):
    torch.manual_seed(seed)
    model = ScoreModel.from_backbone(folder, info, torch.float32, head_bias=head_bias).eval()
    if head_bias:
        torch.nn.init.constant_(model.score_head.bias, 0.7)
    return model


def scores(model):
    with torch.no_grad():
        return model.eval()(pack_rows(sequences()[0], LENGTHS, 16), ENDS)


def scores_one_by_one(model):
    """Each sequence alone through the bare backbone, head and normaliser written out."""
    values = []
    with torch.no_grad():
        for tokens in sequences()[1]:
            hidden = model.backbone(input_ids=torch.from_numpy(tokens)[None]).last_hidden_state[0, -1].double()
            bias = 0.0 if model.score_head.bias is None else float(model.score_head.bias)
            raw = float(hidden @ model.score_head.weight[0].double()) + bias
            values.append((raw - model.info.mean) / model.info.std)
    return torch.tensor(values, dtype=torch.float32)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_packed_equals_one_by_one_on_any_backbone(name, folders, tmp_path):
    model = make_score_model(folders(name), ScoreInfo("reward", mean=0.4, std=1.6))
    assert model.packing == ("apart" if name in PACKS_APART else "masked")
    assert hidden_width(model.backbone) == model.score_head.in_features
    actual = scores(model)
    assert_close(actual, scores_one_by_one(model), TINY_MODELS)
    save_score_model(tmp_path / "score", model.backbone, dict(model.state_dict()), model.info, folders(name))
    assert torch.equal(scores(load_score_model(tmp_path / "score", torch.float32)), actual)

    policy = PolicyModel.load(folders(name), torch.float32).eval()
    tokens, parts = sequences()
    starts = LENGTHS.cumsum() - LENGTHS
    positions = torch.cat([torch.arange(a + 1, a + n) for a, n in zip(starts, LENGTHS, strict=True)])
    expected = []
    with torch.no_grad():
        logprobs = policy(pack_rows(tokens, LENGTHS, 16), positions)
        for part in parts:
            ids = torch.from_numpy(part)[None]
            logits = policy.lm(input_ids=ids).logits[0].double().log_softmax(-1)
            expected.append(logits[:-1].gather(1, ids[0, 1:, None])[:, 0])
    assert_close(logprobs, torch.cat(expected).float(), TINY_MODELS)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_training_drops_nothing_out(name, folders, tmp_path):
    """The rates stay in the config, for whoever trains the model elsewhere."""
    lossy = str(shutil.copytree(folders(name), tmp_path / "lossy"))
    file = Path(lossy, "config.json")
    config = json.loads(file.read_text())
    rates = {key: 0.5 for key, value in config.items() if "drop" in key and isinstance(value, float)}
    file.write_text(json.dumps(config | rates))
    model, plain = make_score_model(lossy, ScoreInfo("reward")), make_score_model(folders(name), ScoreInfo("reward"))
    rows = pack_rows(sequences()[0], LENGTHS, 16)
    assert_close(model.train()(rows, ENDS), plain.eval()(rows, ENDS), TINY_MODELS)
    assert all(getattr(model.backbone.config, rate) == 0.5 for rate in rates)
    policy, steady = PolicyModel.load(lossy, torch.float32).train(), PolicyModel.load(folders(name), torch.float32)
    assert_close(policy(rows, ENDS[[0, 1, 3]]), steady.eval()(rows, ENDS[[0, 1, 3]]), TINY_MODELS)


@pytest.mark.parametrize("name", ["llama", "opt"])
def test_every_parameter_gets_its_gradient_packed_or_not(name, folders):
    """Also from an empty micro-batch, whose gradients are zero."""
    model = make_score_model(folders(name), ScoreInfo("reward"))
    model(pack_rows(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64), 8), ENDS[:0]).sum().backward()
    used = [n for n, p in model.named_parameters() if p.grad is not None]
    assert {"score_head.weight", "score_head.bias"} <= set(used)
    assert all(not p.grad.any() for _, p in model.named_parameters() if p.grad is not None)
    model(pack_rows(sequences()[0], LENGTHS, 16), ENDS).sum().backward()
    assert sum(bool(p.grad.any()) for p in model.parameters() if p.grad is not None) >= len(used) - 1


def test_an_encoder_is_run_one_sequence_a_row():
    """BERT sees both ways and knows no packing: padding must not be seen either."""
    torch.manual_seed(0)
    from transformers import BertConfig, BertModel

    backbone = BertModel(BertConfig(**{k: v for k, v in SIZE.items() if v is not None}), add_pooling_layer=False)
    model = ScoreModel(backbone.eval(), ScoreInfo("reward"))
    assert not isolates_sequences(backbone)
    assert_close(scores(model), scores_one_by_one(model), TINY_MODELS)


def test_one_per_row_keeps_every_token():
    tokens, parts = sequences()
    rows, mask = pack_rows(tokens, LENGTHS, 16).one_per_row()
    assert rows.input_ids.shape == mask.shape == (5, 9)
    assert mask.sum(1).tolist() == LENGTHS.tolist()
    assert all(rows.input_ids[i, : len(part)].tolist() == part.tolist() for i, part in enumerate(parts))
    assert rows.input_ids.view(-1)[rows.flat].tolist() == tokens.tolist()
    assert rows.position_ids[0].tolist() == list(range(9))


def test_a_critic_begins_with_the_scores_and_has_no_normaliser(folders, tmp_path):
    for info, bias in ((ScoreInfo("reward", mean=0.4, std=1.6), True), (ScoreInfo("cost", std=3.0), False)):
        model = make_score_model(folders("llama"), info, head_bias=bias)
        save_score_model(tmp_path / "score", model.backbone, dict(model.state_dict()), info, folders("llama"))
        critic = load_critic(tmp_path / "score", torch.float32)
        assert critic.info == ScoreInfo("critic")
        assert critic.score_head.bias is not None
        assert_close(scores(critic), scores(model), TINY_MODELS)
    with pytest.raises(ValueError, match="a critic is not normalised"):
        ScoreInfo("critic", std=2.0)


def published(folder, tmp_path, *, kind, pickled=False, bias=True, **changes):
    """A checkpoint in the published layout, put together here from its parts, and the parts."""
    torch.manual_seed(5)
    config = json.loads((Path(folder) / "config.json").read_text())
    config |= {
        "architectures": ["LlamaForScore"], "score_type": kind, "score_dim": 1, "bias": bias, "do_normalize": True,
        "normalizer_type": "ExponentialMovingAverage", "momentum": 0.9, "mean": [0.25], "var": [2.25],
    } | changes  # fmt: skip
    tensors = {k: v for k, v in load_file(Path(folder) / "model.safetensors").items() if k.startswith("model.")}
    tensors["score_head.weight"] = torch.randn(1, 32) / 6
    if bias:
        tensors["score_head.bias"] = torch.tensor([0.3])
    tensors |= {"normalizer.mean": torch.tensor([0.25]), "normalizer.var": torch.tensor([2.25])}
    tensors["normalizer.count"] = torch.tensor([640])
    (tmp_path / "config.json").write_text(json.dumps(config))
    if pickled:
        torch.save(tensors, tmp_path / "pytorch_model.bin")
    else:
        save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    return tensors


@pytest.mark.parametrize("kind", ["reward", "cost"])
@pytest.mark.parametrize("pickled", [True, False])
@pytest.mark.parametrize("do_normalize", [True, False])
def test_the_published_layout_is_read(kind, pickled, do_normalize, folders, tmp_path):
    tensors = published(folders("llama"), tmp_path, kind=kind, pickled=pickled, do_normalize=do_normalize)
    model = load_score_model(str(tmp_path), torch.float32)
    shift, scale = (0.25 if kind == "reward" else 0.0, 1.5) if do_normalize else (0.0, 1.0)
    assert (model.info.score_type, model.info.mean, model.info.std) == (kind, shift, pytest.approx(scale))
    assert read_score_info(str(tmp_path)) == model.info
    backbone = PolicyModel.load(folders("llama"), torch.float32).lm.model.eval()
    expected = []
    with torch.no_grad():
        for tokens in sequences()[1]:
            hidden = backbone(input_ids=torch.from_numpy(tokens)[None]).last_hidden_state[0, -1]
            raw = hidden @ tensors["score_head.weight"][0] + 0.3
            expected.append((raw - shift) / scale)
    assert_close(scores(model), torch.stack(expected), TINY_MODELS)


def test_a_published_model_in_several_files_and_without_a_bias(folders, tmp_path):
    tensors = published(folders("llama"), tmp_path, kind="cost", bias=False, do_normalize=False)
    whole = scores(load_score_model(tmp_path, torch.float32))
    (tmp_path / "model.safetensors").unlink()
    names = sorted(tensors)
    for number, part in enumerate((names[::2], names[1::2])):
        torch.save({name: tensors[name] for name in part}, tmp_path / f"part-{number}.bin")
    index = {name: f"part-{i % 2}.bin" for i, name in enumerate(names)}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    model = load_score_model(tmp_path, torch.float32)
    assert model.score_head.bias is None
    assert torch.equal(scores(model), whole)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"score_type": None}, "score_type None: write 'reward' or 'cost'"),
        ({"score_type": "harm"}, "score_type 'harm'"),
        ({"score_dim": 3}, r"gives 3 scores \(score_dim\)"),
    ],
)
def test_a_published_model_that_does_not_say_what_it_scores_is_refused(changes, message, folders, tmp_path):
    published(folders("llama"), tmp_path, kind="cost", **changes)
    for read in (read_score_info, lambda folder: load_score_model(folder, torch.float32)):
        with pytest.raises(CastorError, match=message):
            read(tmp_path)


def test_a_published_model_without_its_head_is_refused(folders, tmp_path):
    published(folders("llama"), tmp_path, kind="cost")
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["score_head.weight"]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CastorError, match="its weights have no score_head"):
        load_score_model(tmp_path, torch.float32)


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma", "gpt2", "opt", "phi", "gpt_neox", "bloom"])
def test_the_published_layout_is_written(name, folders, tmp_path):
    for info in (ScoreInfo("reward", mean=0.4, std=1.6), ScoreInfo("cost")):
        model = make_score_model(folders(name), info)
        save_pku(model, tmp_path / "pku", folders(name))
        loaded = load_score_model(tmp_path / "pku", torch.float32)
        assert loaded.info.score_type == info.score_type
        assert_close(scores(loaded), scores(model), TINY_MODELS)
    config, tensors = (
        json.loads((tmp_path / "pku" / "config.json").read_text()),
        load_file(tmp_path / "pku/model.safetensors"),
    )
    assert config["architectures"][0].endswith("ForScore")
    assert (config["score_type"], config["bias"], config["do_normalize"], config["score_dim"]) == (
        "cost",
        True,
        False,
        1,
    )
    prefixes = {key.split(".")[0] for key in tensors}
    backbone = {"gpt2": "transformer", "bloom": "transformer", "gpt_neox": "gpt_neox"}.get(name, "model")
    assert prefixes == {backbone, "score_head", "normalizer"}


def test_an_architecture_the_published_layout_does_not_know(folders, tmp_path):
    with pytest.raises(CastorError, match=r"knows no qwen3 score models.*use --as castor"):
        save_pku(make_score_model(folders("qwen3"), ScoreInfo("cost")), tmp_path / "pku", folders("qwen3"))


def transformers_scores(folder):
    """What transformers alone makes of the folder, on a right-padded batch."""
    classifier, loading = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not any(loading[key] for key in ("missing_keys", "mismatched_keys", "unexpected_keys"))
    pad = AutoTokenizer.from_pretrained(folder).pad_token_id
    batch = torch.full((len(LENGTHS), int(LENGTHS.max())), pad)
    for i, tokens in enumerate(sequences()[1]):
        batch[i, : len(tokens)] = torch.from_numpy(tokens)
    mask = torch.arange(batch.shape[1])[None] < torch.from_numpy(LENGTHS)[:, None]
    with torch.no_grad():
        logits = classifier.eval()(input_ids=batch, attention_mask=mask.long()).logits
    assert logits.shape == (len(LENGTHS), 1)
    return logits[:, 0]


@pytest.mark.parametrize(
    "name", ["llama", "qwen2", "qwen3", "mistral window", "gemma", "gpt2", "opt", "phi", "gpt_neox", "bloom"]
)
def test_a_plain_sequence_classifier_gives_the_same_scores(name, folders, tmp_path):
    """A cost without a head bias on every architecture, and anything where the last norm has a bias."""
    info = ScoreInfo("cost", std=1.7, safe_mean=-0.9, unsafe_mean=1.1)
    cases = [make_score_model(folders(name), info, head_bias=False)]
    if name in BIASED_NORM:
        cases += [make_score_model(folders(name), info), make_score_model(folders(name), ScoreInfo("reward", 0.4, 1.6))]
    for model in cases:
        expected = scores(model)
        assert save_classifier(model, tmp_path / "classifier", folders(name)) == 0.0
        assert torch.equal(scores(model), expected)  # the model itself is left as it was
        assert_close(transformers_scores(tmp_path / "classifier"), expected, TINY_MODELS)
        loaded = load_score_model(tmp_path / "classifier", torch.float32)
        assert_close(scores(loaded), expected, TINY_MODELS)
        assert (loaded.info.score_type, loaded.info.safe_mean) == (model.info.score_type, model.info.safe_mean)


@pytest.mark.parametrize("name", ["llama", "gemma"])
def test_an_offset_without_a_place_is_noted(name, folders, tmp_path):
    for info, offset in ((ScoreInfo("cost", std=2.0, safe_mean=-0.9), 0.35), (ScoreInfo("reward", 0.2, 2.0), 0.25)):
        model = make_score_model(folders(name), info)
        assert save_classifier(model, tmp_path / "classifier", folders(name)) == pytest.approx(offset)
        assert_close(transformers_scores(tmp_path / "classifier") + offset, scores(model), TINY_MODELS)
        loaded = load_score_model(tmp_path / "classifier", torch.float32)
        assert_close(scores(loaded), scores(model), TINY_MODELS)
        assert loaded.info == ScoreInfo(info.score_type, 0.0, 2.0, info.safe_mean)


def test_the_command_says_what_a_bare_logit_lacks_and_how_prompts_are_read(folders, tmp_path):
    model, run = make_score_model(folders("llama"), ScoreInfo("cost", std=2.0)), tmp_path / "run"
    save_score_model(run / "cost", model.backbone, dict(model.state_dict()), model.info, folders("llama"))
    (run / "config.yaml").write_text("template: pku\n")
    (run / "stages.json").write_text("{}")
    for options, template in (([], "pku"), (["--template", "Q: {prompt} A:"], "Q: {prompt} A:")):
        target = tmp_path / template[:1]
        arguments = ["export", str(run / "cost"), str(target), "--as", "sequence-classification", *options]
        told = " ".join(CliRunner().invoke(app, arguments, catch_exceptions=False).output.split())
        assert "the cost is its logit plus 0.35 (castor.offset in config.json)" in told
        assert f"it reads prompts in the format {template!r}" in told
        assert json.loads((target / "config.json").read_text())["castor"]["input"]["template"] == template


@pytest.mark.parametrize("kind", ["language model", "LoRA adapter"])
def test_what_needs_no_export_is_told_so(kind, folders, tmp_path):
    source = Path(folders("llama"))
    if kind == "LoRA adapter":
        source = tmp_path / "policy.adapter"
        source.mkdir()
        (source / "adapter_config.json").write_text("{}")
    with pytest.raises(CastorError, match=f"is a {kind}, .*reads? as it is"):
        CliRunner().invoke(app, ["export", str(source), str(tmp_path / "out"), "--as", "pku"], catch_exceptions=False)


def test_a_tokenizer_that_pads_with_its_end_of_text_cannot_be_a_classifiers(folders, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(folders("gpt2"))
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    with pytest.raises(CastorError, match="pads with its end-of-text token"):
        save_classifier(
            make_score_model(folders("gpt2"), ScoreInfo("cost")), tmp_path / "out", str(tmp_path / "tokenizer")
        )


def test_a_sequence_classifier_of_several_labels_is_no_score_model(folders, tmp_path):
    config = CONFIG_MAPPING["llama"](**SIZE, num_labels=14)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    for read in (read_score_info, lambda folder: load_score_model(folder, torch.float32)):
        with pytest.raises(CastorError, match="sequence classifier of 14 labels: a score model has one"):
            read(tmp_path)


def test_a_sequence_classifier_of_one_label_is_a_reward_model(folders, tmp_path):
    torch.manual_seed(0)
    config = CONFIG_MAPPING["qwen2"](**SIZE, num_labels=1)
    classifier = AutoModelForSequenceClassification.from_config(config).eval()
    classifier.save_pretrained(tmp_path)
    model = load_score_model(tmp_path, torch.float32)
    assert model.info == ScoreInfo("reward")
    with torch.no_grad():
        expected = [classifier(input_ids=torch.from_numpy(tokens)[None]).logits[0, 0] for tokens in sequences()[1]]
    assert_close(scores(model), torch.stack(expected), TINY_MODELS)


def test_a_language_model_is_no_score_model(folders):
    with pytest.raises(CastorError, match=r"no score model .*but a GPT2LMHeadModel: train a reward or cost model"):
        load_score_model(folders("gpt2"), torch.float32)


def test_export_on_the_command_line(folders, tmp_path):
    model = make_score_model(folders("gpt2"), ScoreInfo("cost", std=1.7))
    save_score_model(tmp_path / "cost", model.backbone, dict(model.state_dict()), model.info, folders("gpt2"))
    source = tmp_path / "cost"
    for layout in ("sequence-classification", "pku", "castor"):
        target = tmp_path / layout
        result = CliRunner().invoke(app, ["export", str(source), str(target), "--as", layout])
        assert result.exit_code == 0, result.output
        assert str(target) in result.output
        loaded = load_score_model(target, torch.float32)
        assert_close(scores(loaded), scores(model), TINY_MODELS)
        source = target
        rounded = [str(tmp_path / "cost"), str(tmp_path / f"{layout}-16"), "--as", layout, "--dtype", "bfloat16"]
        assert CliRunner().invoke(app, ["export", *rounded]).exit_code == 0
        loaded = load_score_model(rounded[1], torch.float32)
        torch.testing.assert_close(scores(loaded), scores(model), rtol=0.05, atol=0.05)
    result = CliRunner().invoke(app, ["export", str(source), str(tmp_path / "again"), "--as", "gguf"])
    assert result.exit_code == 2
    with pytest.raises(CastorError, match="is the model itself"):
        CliRunner().invoke(app, ["export", str(source), str(source), "--as", "pku"], catch_exceptions=False)
