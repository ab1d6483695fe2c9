"""Models and prompts of the bench."""

from benchmarks.bench.random_models import llama, make_llama, random_prompts, text
from castor.data.tokens.template import PromptTemplate, load_tokenizer


def test_prompts_are_of_known_words_and_none_begins_as_another(tmp_path):
    model = make_llama(llama(width=64, layers=1, vocabulary=512, context=64), tmp_path)
    prompts, template = random_prompts(model, 16, 8), PromptTemplate(load_tokenizer(model), "{prompt}")
    assert [template.encode_prompt(prompt.text) for prompt in prompts] == [prompt.ids.tolist() for prompt in prompts]
    assert len({prompt.ids[0] for prompt in prompts}) > 12
    assert {len(prompt.ids) for prompt in prompts} == {8}


def test_the_text_has_words_enough_for_the_largest_vocabulary_that_is_asked_for():
    assert len({word for line in text() for word in line.split()}) == 60 + 60 * 60
