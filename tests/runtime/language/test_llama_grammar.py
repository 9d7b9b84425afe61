import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tvau_edge.quantize.language import quantize_gguf
from tvau_edge.runtime.errors import LanguageModelError
from tvau_edge.runtime.language.dialogue import clean
from tvau_edge.runtime.language.grammar import Answers, answer_grammar, gbnf
from tvau_edge.runtime.language.llama import LanguageModel
from tvau_edge.runtime.language.llama_grammar import Grammar

KEYS = ("anomaly", "target", "motion", "from", "to")


@pytest.fixture(scope="module", params=["f32", "q8_0", "q4_k_m"])
def model(request, tiny_gguf, tmp_path_factory):
    path = tiny_gguf
    if request.param != "f32":
        path = tmp_path_factory.mktemp("gguf") / f"{request.param}.gguf"
        quantize_gguf(tiny_gguf, path, request.param)
    with LanguageModel(path, context=512, threads=1) as model:
        yield model


def say(model, grammar, logits, most=48):
    """What comes out when a model's logits are `logits(step)`."""
    grammar.restart()
    said = []
    for step in range(most):
        token = grammar.choose(logits(step))
        if model.ends(token):
            break
        grammar.accept(token)
        said.append(token)
    return model.text(said)


@pytest.mark.parametrize("key", KEYS)
def test_whatever_the_logits_the_answer_parses(model, key):
    random = np.random.default_rng(5)
    with Grammar(model, answer_grammar(key)) as grammar:
        for trial in range(12):
            scale = (0.1, 1, 30)[trial % 3]
            text = say(
                model,
                grammar,
                lambda _, scale=scale: random.normal(0, scale, model.tokens).astype(np.float32),
            )
            answer = clean(text)
            assert getattr(Answers.model_validate({key: answer}), "from_" if key == "from" else key) == answer


@pytest.mark.parametrize("key", KEYS)
def test_a_model_with_random_weights_answers_well(model, key):
    model.clear()
    model.evaluate_tokens(model.tokenize("Which target?"))
    with Grammar(model, answer_grammar(key)) as grammar:

        def logits(step):
            if step:
                model.evaluate_tokens([11])
            return model.logits()

        Answers.model_validate({key: clean(say(model, grammar, logits))})


def test_the_likeliest_allowed_token_is_chosen(model):
    yes = model.tokenize("Yes")[0]
    logits = np.full(model.tokens, -5, np.float32)
    logits[model.tokenize("person")[0]], logits[yes] = 9, 1
    with Grammar(model, answer_grammar("anomaly")) as grammar:
        assert grammar.choose(logits) == yes
        assert logits.max() == 9  # left as they are
    with Grammar(model, answer_grammar("target")) as grammar:
        assert grammar.choose(logits) == model.tokenize("person")[0]


def test_an_answer_has_no_control_tokens_and_is_not_empty(model):
    with Grammar(model, answer_grammar("target")) as grammar:
        for name in ("<|im_start|>", "<|vision_end|>", "<|im_end|>", "<|endoftext|>"):
            logits = np.zeros(model.tokens, np.float32)
            logits[model.tokenize(name, control=True)[0]] = 50
            assert not model.is_control(grammar.choose(logits))


def test_an_answer_may_end_after_a_word_and_not_after_a_space(model):
    end = model.tokenize("<|im_end|>", control=True)[0]
    logits = np.zeros(model.tokens, np.float32)
    logits[end] = 5
    with Grammar(model, answer_grammar("to")) as grammar:
        for token in model.tokenize("left"):
            grammar.accept(token)
        assert grammar.choose(logits) == end
        (space,) = model.tokenize(" ")
        grammar.accept(space)
        assert grammar.choose(logits) != end


def test_a_grammar_that_is_none(model):
    with pytest.raises(LanguageModelError, match="cannot read a grammar"):
        Grammar(model, "root ::= (")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
@given(
    st.lists(
        st.text(st.characters(codec="utf-8", min_codepoint=1), min_size=1, max_size=8),
        min_size=1,
        max_size=4,
        unique=True,
    )
)
def test_an_enumeration_of_any_strings_is_a_grammar(tiny_model, values):
    with Grammar(tiny_model, gbnf({"enum": values, "type": "string"})) as grammar:
        random = np.random.default_rng(1)
        text = say(
            tiny_model, grammar, lambda _: random.normal(0, 1, tiny_model.tokens).astype(np.float32), most=99
        )
        assert text in values


@pytest.fixture(scope="module")
def tiny_model(tiny_gguf):
    with LanguageModel(tiny_gguf, context=64, threads=1) as model:
        yield model


def test_other_schemas_have_no_grammar():
    with pytest.raises(ValueError, match="no grammar"):
        gbnf({"type": "integer"})
