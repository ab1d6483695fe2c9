"""Training, rollouts, scoring and serving read the same ids, whatever special tokens a tokenizer puts around a text."""

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from castor.config.demo_model import DemoModel
from castor.data.rows.schemas import Exchange
from castor.data.tokens.chat_template import chat_template, rendered_ids
from castor.data.tokens.samples import Samples
from castor.data.tokens.template import PromptTemplate
from castor.io.errors import CastorError
from castor.models.tiny import train_tokenizer
from castor.scoring.frozen import FrozenModel
from castor.scoring.text_model import TextModel

TEXT = ["how are you ? i am fine , thank you ."]
OWN = '{{"Q"}} 🙂 \\n "\\": {prompt}\nA:'
CONVERSATIONS = [
    Exchange("how are you ?", "i am fine ."),
    Exchange(" {{ prompt }} 🙂\n", ""),
    Exchange("c", "d", (("a\n", "b"),)),
    Exchange("you ?", "thank you", (("how", "fine"), ("🙂", " i am\n"))),
]


def bpe(around: str) -> PreTrainedTokenizerFast:
    """Byte-level BPE with a BOS token; `around` says what its post-processor puts before and behind a text."""
    tokenizer = train_tokenizer(DemoModel(tokenizer="bpe", vocab_size=300), TEXT)
    tokenizer.add_special_tokens({"bos_token": "<bos>"})
    special = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("<bos>", "<eos>")]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single=around, special_tokens=special)
    return tokenizer


def sentencepiece(prepend: str) -> PreTrainedTokenizerFast:
    """Pieces with ▁ for spaces and a BOS before every text, as Llama's; `prepend` says where a ▁ is put before it."""
    letters = sorted({"▁", *"".join(TEXT), *"BEGINNING OF CONVERSATION: USER: ASSISTANT:Qabcd\n"} - {" "})
    vocabulary = {token: number for number, token in enumerate(["<unk>", "<bos>", "<eos>", "<pad>", *letters])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend, split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=prepend)
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    names = {"unk_token": "<unk>", "bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


TOKENIZERS = {
    "neither": lambda: bpe("$A"),
    "BOS": lambda: bpe("<bos> $A"),
    "EOS": lambda: bpe("$A <eos>"),
    "both": lambda: bpe("<bos> $A <eos>"),
    "pieces, ▁ before every part": lambda: sentencepiece("always"),
    "pieces, ▁ before a text": lambda: sentencepiece("first"),
    "pieces, no ▁": lambda: sentencepiece("never"),
}


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("kind", ["chat", "pku", OWN])
def test_training_rollout_scoring_and_serving_read_the_same_ids(name, kind):
    tokenizer = TOKENIZERS[name]()
    if kind == "chat" and tokenizer.chat_template is None:
        pytest.skip("has no chat template")
    template = PromptTemplate(tokenizer, kind)
    jinja, eos = chat_template(template), tokenizer.eos_token_id
    scorer = TextModel(FrozenModel("a model", None, None, 1), template, None)  # type: ignore[arg-type]  # never asked
    in_one_piece = TextModel(scorer.frozen, template, None, one_piece=True)
    for text in CONVERSATIONS:
        prompt = template.encode_prompt(text.prompt, text.history)
        assert prompt[-1] != eos  # it would end before the answer
        assert (prompt[0] == tokenizer.bos_token_id) == (name not in ("neither", "EOS") and kind != "chat")
        assert rendered_ids(template, jinja, text.prompt, text.history) == prompt
        packed = Samples(template, [[text]], 1000).pack(np.array([0]), 1000)
        trained = packed.rows.input_ids.view(-1)[packed.rows.flat].tolist()
        assert trained == scorer.encode(text).tolist() == [*prompt, *template.encode_response(text.response)]
        assert packed.prompt_lengths.tolist() == [len(prompt)]
        joint = in_one_piece.encode(text).tolist()
        assert joint[: len(template.leading_ids)] == template.leading_ids
        assert joint[-1:] == [eos] != joint[-2:-1]
        if not text.history:
            assert template.tokenised([text.prompt])[0].ids.tolist() == prompt
    asked = [template.prompt_text(text.prompt, text.history) for text in CONVERSATIONS]
    assert template.encode_texts(asked) == [template.encode_text(text) for text in asked]
    said = [text.response for text in CONVERSATIONS]
    assert template.encode_responses(said) == [template.encode_response(text) for text in said]


def test_a_served_format_of_ones_own_is_the_text_of_training():
    template = PromptTemplate(bpe("<bos> $A <eos>"), OWN)
    jinja = chat_template(template)
    messages = [{"role": role, "content": role} for role in ("user", "assistant", "user")]
    text = template.tokenizer.apply_chat_template(messages, chat_template=jinja, tokenize=False)
    assert text == "<bos>" + template.prompt_text("user", (("user", "assistant"),))
    assert "🙂" in text
    with pytest.raises(Exception, match="knows user and assistant messages only"):
        template.tokenizer.apply_chat_template([{"role": "system", "content": "x"}], chat_template=jinja)


def test_a_tokenizer_whose_begin_cannot_be_written_as_text_is_refused():
    tokenizer = bpe("$A")
    space = ("Ġ", tokenizer.convert_tokens_to_ids("Ġ"))  # the piece of a space, whose own letter are two bytes
    post = processors.TemplateProcessing(single="Ġ $A", special_tokens=[space])
    tokenizer.backend_tokenizer.post_processor = post
    template = PromptTemplate(tokenizer, "pku")
    assert template.encode_prompt("a")[0] == space[1]
    with pytest.raises(CastorError, match=r"begin-of-text token 'Ġ' .* cannot be served as chats"):
        chat_template(template)
