"""Policies, score models, tokenizers and templates: what is saved is what is loaded, and the wrong thing is refused."""

import json
import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from castor.config.data import SyntheticOptions
from castor.config.demo_model import DemoModel
from castor.data.tokens.template import PromptTemplate, decode_response, load_tokenizer, require_same_tokenizer
from castor.io.checkpoint import verify_folder
from castor.io.errors import CastorError
from castor.models.load import load_score_model, read_score_info
from castor.models.policy import PolicyModel, context_length
from castor.models.score import ScoreInfo, ScoreModel, save_score_model
from castor.models.tiny import EOS, make_demo_model, train_tokenizer
from castor.packing import pack_rows
from castor.synthetic.corpus import demonstrations, preference_rows
from tests.numerics import TINY_MODELS, assert_close

SMALL = {"hidden_size": 16, "layers": 1, "heads": 2, "intermediate_size": 24, "max_position_embeddings": 64}
OPTIONS = SyntheticOptions()


def corpus(rows=400):
    return [text for row in demonstrations(OPTIONS, "train", rows) for text in (row["prompt"], row["response"])]


@pytest.fixture(scope="module")
def policy_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "policy"
    make_demo_model(DemoModel(**SMALL), corpus(), seed=0, folder=folder)
    return folder


@pytest.fixture(scope="module")
def score_folder(policy_folder):
    folder = policy_folder.with_name("cost")
    torch.manual_seed(2)
    model = ScoreModel.from_backbone(str(policy_folder), ScoreInfo("cost"), torch.float32)
    info = ScoreInfo("cost", std=1.7, safe_mean=-1.0, unsafe_mean=0.5)
    save_score_model(folder, model.backbone, dict(model.state_dict()), info, str(policy_folder))
    return folder


def rows_and_ends():
    tokens = torch.arange(20).numpy() % 11
    lengths = torch.tensor([5, 9, 6])
    return pack_rows(tokens, lengths.numpy(), 16), lengths.cumsum(0) - 1


def test_a_score_model_survives_saving_and_loading_exactly(policy_folder, score_folder):
    torch.manual_seed(2)
    fresh = ScoreModel.from_backbone(str(policy_folder), ScoreInfo("cost", std=1.7), torch.float32).eval()
    loaded = ScoreModel.load(score_folder, torch.float32).eval()
    assert loaded.info == read_score_info(score_folder) == ScoreInfo("cost", 0.0, 1.7, -1.0, 0.5)
    with torch.no_grad():
        expected, actual = fresh(*rows_and_ends()), loaded(*rows_and_ends())
    assert torch.equal(actual, expected)
    assert actual.dtype == torch.float32
    assert expected.std() > 0
    verify_folder(score_folder)
    assert load_tokenizer(str(score_folder)).get_vocab() == load_tokenizer(str(policy_folder)).get_vocab()


def test_saving_again_replaces_the_whole_folder(score_folder, tmp_path):
    folder = shutil.copytree(score_folder, tmp_path / "cost")
    (folder / "left over").write_text("")
    model = ScoreModel.load(folder, torch.float32)
    with torch.no_grad():
        model.score_head.bias.fill_(3.0)
    save_score_model(folder, model.backbone, dict(model.state_dict()), model.info, str(folder))
    assert not (folder / "left over").exists()
    assert ScoreModel.load(folder, torch.float32).score_head.bias.item() == 3.0


def test_the_backbone_of_a_score_model_is_the_policys(policy_folder, score_folder):
    saved = load_file(score_folder / "model.safetensors")
    for name, tensor in load_file(policy_folder / "model.safetensors").items():
        if name != "lm_head.weight":
            assert torch.equal(saved[name.removeprefix("model.")], tensor)


def test_a_fresh_head_has_a_zero_bias_and_a_normaliser_of_identity(policy_folder):
    model = ScoreModel.from_backbone(str(policy_folder), ScoreInfo("reward"), torch.float32).eval()
    assert model.score_head.bias.item() == 0.0
    rows, ends = rows_and_ends()
    with torch.no_grad():
        raw = model(rows, ends)
        model.info = ScoreInfo("reward", mean=2.0, std=4.0)
        torch.testing.assert_close(model(rows, ends), (raw - 2.0) / 4.0)
        model.info = ScoreInfo("cost", std=4.0)
        assert torch.equal(model(rows, ends).sign(), raw.sign())  # scaling leaves the side of zero


@pytest.mark.parametrize("kwargs", [{"mean": 0.1}, {"mean": -1e-9}, {"std": 0.0}, {"std": -1.0}, {"std": float("nan")}])
def test_a_cost_is_never_shifted_and_a_normaliser_divides_by_something(kwargs):
    with pytest.raises(ValueError, match=r"never shifted|must be positive"):
        ScoreInfo("cost", **kwargs)


def test_a_policy_is_no_score_model(policy_folder, tmp_path):
    with pytest.raises(CastorError, match=r"holds no score model \(castor_score.json is missing\)"):
        ScoreModel.load(policy_folder, torch.float32)
    for refuse in (lambda: load_score_model(policy_folder, torch.float32), lambda: read_score_info(policy_folder)):
        with pytest.raises(CastorError, match=r"holds no score model .*, but a LlamaForCausalLM"):
            refuse()
    with pytest.raises(CastorError, match="there is no model at"):
        read_score_info(tmp_path / "nowhere")


@pytest.mark.parametrize("content", ["not json", '{"score_type": "cost", "mean": 1.0}', '{"kind": "cost"}'])
def test_a_damaged_description_is_named(score_folder, tmp_path, content):
    folder = shutil.copytree(score_folder, tmp_path / "cost")
    (folder / "castor_score.json").write_text(content)
    with pytest.raises(CastorError, match="does not describe a score model"):
        read_score_info(folder)


def test_weights_of_another_architecture_are_refused(policy_folder, score_folder, tmp_path):
    with pytest.raises(CastorError, match="another architecture"):  # a score model has no vocabulary projection
        PolicyModel.load(str(score_folder), torch.float32)
    folder = shutil.copytree(policy_folder, tmp_path / "renamed")
    weights = load_file(folder / "model.safetensors")
    save_file(
        {f"other.{name}": tensor for name, tensor in weights.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(CastorError, match="another architecture"):
        PolicyModel.load(str(folder), torch.float32)
    with pytest.raises(CastorError, match="another architecture"):
        ScoreModel.from_backbone(str(folder), ScoreInfo("reward"), torch.float32)


def test_a_config_of_another_size_is_refused(policy_folder, tmp_path):
    folder = shutil.copytree(policy_folder, tmp_path / "wider")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": 32}))
    with pytest.raises(CastorError, match=str(folder)):
        PolicyModel.load(str(folder), torch.float32)


def test_a_folder_without_a_model_is_named(tmp_path):
    for load in (PolicyModel.load, lambda m, d: ScoreModel.from_backbone(m, ScoreInfo("reward"), d)):
        with pytest.raises(CastorError, match="cannot be loaded"):
            load(str(tmp_path), torch.float32)
    with pytest.raises(CastorError, match="no model folder"):
        context_length(str(tmp_path))


def test_any_causal_architecture_is_scored_and_packed(tmp_path):
    """GPT-2 has learned absolute positions: packed sequences still equal single ones."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=40, n_positions=32, n_embd=16, n_layer=1, n_head=2, initializer_range=0.5)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    policy = PolicyModel.load(str(tmp_path), torch.float32).eval()
    tokens, lengths = torch.arange(12).numpy() * 3, [7, 5]
    rows = pack_rows(tokens, torch.tensor(lengths).numpy(), 16)
    with torch.no_grad():
        actual = policy(rows, torch.tensor([3, 6, 8, 11]))
        expected = []
        for part, positions in ((tokens[:7], (3, 6)), (tokens[7:], (1, 4))):
            ids = torch.tensor(part)[None]
            logprobs = torch.log_softmax(policy.lm(input_ids=ids).logits[0], -1)
            expected += [logprobs[p - 1, ids[0, p]] for p in positions]
    assert_close(actual, torch.stack(expected), TINY_MODELS)
    assert context_length(str(tmp_path)) == 32


def test_the_same_seed_and_text_give_the_same_demo_model(policy_folder, tmp_path):
    vocabulary, parameters = make_demo_model(DemoModel(**SMALL), corpus(), seed=0, folder=tmp_path)
    first, second = load_file(policy_folder / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert (tmp_path / "tokenizer.json").read_bytes() == (policy_folder / "tokenizer.json").read_bytes()
    assert vocabulary == len(load_tokenizer(str(tmp_path)))
    assert parameters == sum(tensor.numel() for tensor in second.values())


@pytest.mark.parametrize("kind", ["word", "bpe"])
def test_the_demo_tokenizer_gives_back_the_corpus(kind):
    tokenizer = train_tokenizer(DemoModel(tokenizer=kind), corpus(2000))
    template = PromptTemplate(tokenizer)
    for row in preference_rows(OPTIONS, "train", 200):
        for text in (row["prompt"], row["response_0"], row["response_1"]):
            tokens = template.encode_response(text)
            assert tokens[-1] == tokenizer.eos_token_id
            assert tokenizer.unk_token_id not in tokens
            assert decode_response(tokenizer, tokens) == text


@pytest.fixture(scope="module")
def byte_level():
    return train_tokenizer(DemoModel(tokenizer="bpe"), corpus(50))


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_the_byte_level_tokenizer_gives_back_any_text(byte_level, text):
    assert byte_level.decode(byte_level(text, add_special_tokens=False)["input_ids"]) == text


def test_the_chat_template_is_the_prompt_followed_by_the_response(policy_folder):
    tokenizer = load_tokenizer(str(policy_folder))
    template = PromptTemplate(tokenizer)
    for row in demonstrations(OPTIONS, "test", 50):
        messages = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["response"]}]
        whole = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"]
        assert template.encode_prompt(row["prompt"]) + template.encode_response(row["response"]) == whole
    assert template.prompt_text("hello there") == "<user> hello there <assistant>"


def test_the_pku_template_is_verbatim(policy_folder):
    template = PromptTemplate(load_tokenizer(str(policy_folder)), "pku")
    expected = "BEGINNING OF CONVERSATION: USER: How {are} you? ASSISTANT:"
    assert template.prompt_text("How {are} you?") == expected
    assert not template.chat


def test_a_template_follows_the_tokenizer(policy_folder):
    tokenizer = load_tokenizer(str(policy_folder))
    assert PromptTemplate(tokenizer, "auto").chat
    tokenizer.chat_template = None
    assert not PromptTemplate(tokenizer, "auto").chat
    with pytest.raises(CastorError, match="no chat template"):
        PromptTemplate(tokenizer, "chat")


@pytest.mark.parametrize("token", ["eos", "pad"])
def test_a_tokenizer_without_eos_or_pad_is_refused(policy_folder, tmp_path, token):
    tokenizer = load_tokenizer(str(policy_folder))
    setattr(tokenizer, f"{token}_token", None)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(CastorError, match=rf"(?i)no {token} token.*set {token}_token"):
        load_tokenizer(str(tmp_path))
    with pytest.raises(CastorError, match=r"there is no model at .*nowhere"):
        load_tokenizer(str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(CastorError, match="empty' has no tokenizer that could be loaded"):
        load_tokenizer(str(tmp_path / "empty"))


def test_a_critic_reads_the_policys_tokens(policy_folder, score_folder, tmp_path):
    require_same_tokenizer(policy_folder, score_folder, "the critic of signal harm")
    train_tokenizer(DemoModel(**SMALL), ["another text " + EOS]).save_pretrained(tmp_path)
    with pytest.raises(
        CastorError, match=r"the critic of signal harm would start from .* another tokenizer.*critic_model"
    ):
        require_same_tokenizer(policy_folder, tmp_path, "the critic of signal harm")


def test_parts_that_do_not_fit_each_other_are_named(policy_folder, score_folder, tmp_path):
    """Tokenizer, config, embedding and head of a folder must be of one model."""

    def broken(source, name):
        return shutil.copytree(source, tmp_path / name)

    def change(folder, **values):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | values))
        return folder

    size = len(load_tokenizer(policy_folder))
    small = change(broken(policy_folder, "small"), vocab_size=size - 1)
    with pytest.raises(CastorError, match=rf"small does not fit together: .* token ids up to {size - 1}"):
        load_tokenizer(small)
    for load in (PolicyModel.load, lambda model, dtype: ScoreModel.from_backbone(model, ScoreInfo("cost"), dtype)):
        with pytest.raises(CastorError, match=rf"small does not fit together: by its config .* is \[{size - 1}, 16\]"):
            load(small, torch.float32)
    large = change(broken(score_folder, "large"), vocab_size=size + 3)
    with pytest.raises(CastorError, match=rf"embed_tokens.weight is \[{size + 3}, 16\], in its weights \[{size}, 16\]"):
        load_score_model(large, torch.float32)
    headless = broken(score_folder, "headless")
    save_file({"weight": torch.zeros(1, 24), "bias": torch.zeros(1)}, headless / "score_head.safetensors")
    with pytest.raises(CastorError, match=r"headless does not fit together: .*weight is \(1, 24\), not \(1, 16\)"):
        load_score_model(headless, torch.float32)
